"""Writes tiny files in the formats of the data sets' owners, with values that one can follow."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

DAY_S = 86_400
MAY_6 = 1_494_000_000  # 2017-05-06 00:00 in Shanghai


def write(path: Path, header: str | None, rows: list[list], separator: str = ",") -> None:
    lines = ([header] if header else []) + [separator.join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")


def ml_1m(folder: Path) -> None:
    """40 ratings of 4 users and 5 films; film 5 is not described."""
    rng = np.random.default_rng(0)
    ratings = [
        [1 + i % 4, 1 + (i * 3) % 5, int(rng.integers(1, 6)), 956_700_000 + 60 * i]
        for i in range(40)
    ]
    write(folder / "ratings.dat", None, ratings, "::")
    users = [[1, "F", 1, 10, "48067"], [2, "M", 56, 16, "70072"], [3, "M", 25, 15, "55117"],
             [4, "F", 25, 7, "02460-1"]]  # fmt: skip
    write(folder / "users.dat", None, users, "::")
    movies = [
        [1, "Toy Story (1995)", "Animation|Children's|Comedy"],
        [2, "Misérables, Les (1995)", "Drama|Musical"],
        [3, "Mission: Impossible (1996)", "Action"],
        [4, "Heat (1995)", "Action|Crime"],
    ]
    write(folder / "movies.dat", None, movies, "::")


def ml_1m_derived(folder: Path) -> None:
    """The same events as `ml_1m`, gzipped, with every second rating withheld."""
    ml_1m(folder)
    rows = []
    for number, line in enumerate((folder / "ratings.dat").read_text().splitlines()):
        user, movie, rating, second = line.split("::")
        known = rating if number % 2 == 0 else ""
        rows.append([user, movie, number // 4, known, int(int(rating) >= 3), second, number % 2])
    (folder / "ratings.dat").unlink()
    plain = folder / "interactions_derived.csv"
    write(plain, "user_id,movie_id,pos,rating,rating_ge3,ts,ts_exact", rows)
    for path in (plain, folder / "users.dat", folder / "movies.dat"):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def grocery(folder: Path) -> None:
    events = [[7, 10, 2 * DAY_S], [7, 11, DAY_S], [8, 11, DAY_S], [7, 12, 2 * DAY_S]]
    write(folder / "train.csv", "user_id\titem_id\ttime", events, "\t")
    items = [[10, 3, "[1, 2]", "[]"], [11, 4, "[]", "[]"], [12, 3, "[]", "[10]"]]
    write(folder / "item_meta.csv", "item_id\ti_category\tr_complement\tr_substitute", items, "\t")


def amazon_beauty(folder: Path) -> None:
    (folder / "Beauty.txt").write_text("1 1 2 3 1 2\n2 2 3 1 2 1\n")
    (folder / "Beauty_item2attributes.json").write_text('{"1": [4, 5], "2": [4], "3": [6]}')


COUNTS = [f"I{i}" for i in range(1, 14)]
CODES = [f"C{i}" for i in range(1, 27)]


def criteo_x1(folder: Path) -> None:
    header = ",".join(["label", *COUNTS, *CODES])
    for part, rows in (("train", 8), ("valid", 3), ("test", 3)):
        first = {"train": 0, "valid": 100, "test": 200}[part]
        values = [
            [i % 2, *(f"{(i + j) / 10}" for j in range(13)), *([first + i % 2] * 26)]
            for i in range(rows)
        ]
        write(folder / f"{part}.csv", header, values)


def criteo_kaggle(folder: Path) -> None:
    """100 rows; I1 is missing in every fourth row, I2 runs over 0..19, C1 is common, C2 rare."""
    rows = [
        [
            i % 2,
            "" if i % 4 == 0 else i,
            i % 20,
            *([-1] * 11),
            "68fd1e64",
            f"{i:08x}",
            *([""] * 23),
            "0000000a",
        ]
        for i in range(100)
    ]
    write(folder / "train.txt", None, rows, "\t")


AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
    "app_category,device_id,device_ip,device_model,device_type,device_conn_type,"
    "C14,C15,C16,C17,C18,C19,C20,C21"
)


def avazu_rows(count: int) -> list[list]:
    # 2014-10-24 was a Friday, the 25th a Saturday.
    return [
        [f"{10**19 + i}", i % 2, f"14102{4 + (i % 2)}{i % 24:02d}", 1005, 0, "1fbe01fe", "f3845767",
         "28905ebd", "ecad2386", "7801e8d9", "07d7df22", "a99f214a", f"{i:08x}", "44956a24", 1, 2,
         15706, 320, 50, 1722, 0, 35, -1, 79]
        for i in range(count)
    ]  # fmt: skip


def avazu_kaggle(folder: Path) -> None:
    write(folder / "train.csv", AVAZU, avazu_rows(100))


def avazu_x4_parts(folder: Path) -> None:
    rows = avazu_rows(100)
    for part, chosen in (("train", rows[:80]), ("valid", rows[80:90]), ("test", rows[90:])):
        write(folder / f"{part}.csv", AVAZU, chosen)


def avazu_x1(folder: Path) -> None:
    header = ",".join(["label", *(f"feat_{i}" for i in range(1, 23))])
    for part, rows in (("train", 8), ("valid", 3), ("test", 3)):
        write(folder / f"{part}.csv", header, [[i % 2, *([i] * 22)] for i in range(rows)])


def movielens_tags(folder: Path) -> None:
    """Tag 9 appears in the test part only; ids are written as floats in the training part."""
    header = "label,user_id,item_id,tag_id"
    train = [[1, "1.0", "5.0", "7.0"], [0, "1.0", "6.0", "7.0"], [1, "2.0", "6.0", "8.0"]]
    write(folder / "train.csv", header, train)
    write(folder / "valid.csv", header, [[1, 2, 5, 8], [0, 3, 5, 7]])
    write(folder / "test.csv", header, [[1, 1, 5, 9]])


KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)
KUAIRAND_USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{i}" for i in range(18))
)
KUAIRAND_VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)


def kuairand(folder: Path, version: str = "pure", users: int = 3) -> None:
    """60 + 20 impressions of 3 users and 6 videos (video 5 is not described, video 4 has 2 tags).

    The files lie in the subfolder data, as the owner packs them; 27k comes in parts.
    """
    data = folder / "data"
    data.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)

    def rows(first: int, count: int, start_ms: int, date: int) -> list[list]:
        made = []
        for i in range(first, first + count):
            flags = rng.integers(0, 2, 3)
            made.append(
                [i % users, i % 6, date, 1300 + i % 60, start_ms + 1000 * (i // 2), flags[0],
                 flags[1], 0, 0, 0, 0, flags[2], 1200, 5000, 0, 0, 0, 0, i % 2]
            )  # fmt: skip
        return made

    early = rows(0, 60, 1_649_400_000_000, 20220408)
    late = rows(60, 20, 1_650_600_000_000, 20220422)
    for stem, log in (("4_08_to_4_21", early), ("4_22_to_5_08", late)):
        name = f"log_standard_{stem}_{version}"
        if version == "27k":
            write(data / f"{name}_part1.csv", KUAIRAND_LOG, log[: len(log) // 2])
            write(data / f"{name}_part2.csv", KUAIRAND_LOG, log[len(log) // 2 :])
        else:
            write(data / f"{name}.csv", KUAIRAND_LOG, log)
    write(
        data / f"user_features_{version}.csv",
        KUAIRAND_USER,
        [
            [u, "full_active", 0, -124, 1, 5, '"(0,10]"', 312, '"[100,1k)"', 0, 0, 3624, "730+",
             1, 2, 2, 1153, "", *([0.0] * 13)]
            for u in range(users)
        ],
    )  # fmt: skip
    write(
        data / f"video_features_basic_{version}.csv",
        KUAIRAND_VIDEO,
        [
            [v, 100 + v % 2, "NORMAL", "2022-04-01", "ShortImport", "public",
             "" if v == 0 else 1000 * 2**v, 720, 1280, "", 9.0, '"12,65"' if v == 4 else 12]
            for v in range(5)
        ],
    )  # fmt: skip


PROFILE = (
    "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
    "occupation,new_user_class_level "  # the owner's header ends in a blank
)


def taobao_raw(folder: Path) -> None:
    """64 impressions, 8 on each day; ad 3 has no brand, user 9 no profile."""
    rows = []
    for i in range(64):
        click = int(i % 3 == 0)
        user = 9 if i % 8 == 7 else 1 + i % 3
        second = MAY_6 + (i // 8) * DAY_S + 3600 * (i % 8)
        rows.append([user, second, 1 + i % 3, "430548_1007", 1 - click, click])
    write(folder / "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", rows)
    write(
        folder / "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        [[1, 60, 70, 80, 90, 170.0], [2, 61, 71, 81, 91, 1.0], [3, 61, 72, 82, "NULL", 0.5]],
    )
    write(
        folder / "user_profile.csv",
        PROFILE,
        [[1, 0, 5, 2, 5, "", 3, 0, 3], [2, 0, 5, 2, 5, 1, 3, 0, ""], [3, 1, 4, 1, 4, 2, 3, 1, 2]],
    )


TAOBAO_X1 = (
    "clk,btag_his,cate_his,brand_his,userid,cms_segid,cms_group_id,final_gender_code,age_level,"
    "pvalue_level,shopping_level,occupation,new_user_class_level,adgroup_id,cate_id,campaign_id,"
    "customer,brand,price,pid,btag"
)


def taobao_x1(folder: Path) -> None:
    """Histories oldest first; category 61 is known from histories alone, 99 too rare."""

    def row(i: int) -> list:
        lists = ["", "", ""] if i % 2 else ["1^2^1", "60^61^60", "90^99^91"]
        return [i % 2, *lists, i % 4, 0, 5, 2, 5, 1, 3, 0, 2, 1, 60, 70, 80, 90, 17.5, "p", 1]

    write(folder / "train.csv", TAOBAO_X1, [row(i) for i in range(60)])
    write(folder / "test.csv", TAOBAO_X1, [row(i) for i in range(4)])


def _kuairand_27k(folder: Path) -> None:
    kuairand(folder, "27k")


def _kuairand_1k(folder: Path) -> None:
    kuairand(folder, "1k")


WRITERS: dict[str, Callable[[Path], None]] = {
    "ml-1m": ml_1m,
    "amazon-beauty": amazon_beauty,
    "grocery": grocery,
    "criteo-x1": criteo_x1,
    "criteo-x4": criteo_kaggle,
    "criteo-mlcc": criteo_kaggle,
    "avazu-x1": avazu_x1,
    "avazu-x4": avazu_kaggle,
    "avazu-mlcc": avazu_kaggle,
    "kuairand-pure": kuairand,
    "kuairand-1k": _kuairand_1k,
    "kuairand-27k": _kuairand_27k,
    "taobao-ad": taobao_raw,
    "taobao-ad-mlcc": taobao_raw,
    "taobao-ad-x1": taobao_x1,
    "movielens-tags": movielens_tags,
}
