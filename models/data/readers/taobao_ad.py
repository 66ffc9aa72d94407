"""Taobao display advertising: eight days of impressions, 6-13 May 2017, in three forms.

- `read`: the owner's `raw_sample.csv`, `ad_feature.csv`, `user_profile.csv` joined; 6-11 May train,
  12 May validation, 13 May test (days of Shanghai); histories of the user's earlier clicks on ads.
- `read_mlcc`: the same files, 17 hashed fields with user and time stamp as ids, shuffled 90/1/9
  (official MLCC code, specification 5.4).
- `read_x1`: TaobaoAd_x1 of BARS, `train.csv` and `test.csv` with histories of 50 steps as lists. It
  has no validation part: one in twenty training rows is drawn for it. Ids are mapped anew.

The owner's `behavior_log.csv` (723 million rows) is not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.data.columns import (
    earlier_items,
    encode,
    encode_frame,
    hashed_frame,
    list_history,
    log2_bucket,
    numbered,
    vocabulary,
)
from models.data.delimited import Columns, read_parts, read_table
from models.data.own.prepared import Frames
from models.data.readers.criteo import HASH_ROWS
from models.data.source_files import (
    Report,
    check_times,
    check_unique,
    check_values,
    find,
    quiet,
    suspect,
)
from models.data.tables import (
    TEST,
    TRAIN,
    VALID,
    Field,
    FieldTable,
    HistoryField,
    Side,
    random_split,
)

HISTORY = 50
MIN_COUNT = 10  # of TaobaoAd_x1 in BARS
PRICE_BUCKETS = 32
SHUFFLE_SEED = 42
SHANGHAI_MS = 8 * 3_600_000
DAY_MS = 86_400_000
TEST_DAY = 17_299  # days from 1970-01-01 to 2017-05-13
VALID_SHARE_X1 = 0.05

_SAMPLE: Columns = {
    "user": pl.Int32,
    "time_stamp": pl.Int64,
    "adgroup_id": pl.Int32,
    "pid": pl.String,
    "nonclk": pl.Int8,
    "clk": pl.Int8,
}
_AD: Columns = {
    "adgroup_id": pl.Int32,
    "cate_id": pl.Int32,
    "campaign_id": pl.Int32,
    "customer": pl.Int32,
    "brand": pl.String,  # "NULL" where there is none
    "price": pl.Float64,
}
PROFILE = (
    "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level",
    "shopping_level", "occupation", "new_user_class_level",
)  # fmt: skip
_USER: Columns = {"userid": pl.Int32, **dict.fromkeys(PROFILE, pl.Int32)}
_SIDES: dict[str, Side] = {
    "userid": "user",
    **dict.fromkeys(PROFILE, "user"),
    "adgroup_id": "item",
    "cate_id": "item",
    "campaign_id": "item",
    "customer": "item",
    "brand": "item",
    "price": "item",
    "pid": "context",
}
_HISTORIES = {"ads": "adgroup_id", "categories": "cate_id", "brands": "brand"}
_LISTS_X1 = {"btag_his": "btag", "cate_his": "cate_id", "brand_his": "brand"}


def read(folder: Path, report: Report = quiet) -> FieldTable:
    """16 fields and three histories of clicks, split by day, rows by time."""
    frame = _read_joined(folder, report).sort("time_stamp", maintain_order=True)
    time_ms = frame["time_stamp"].to_numpy() * 1000
    day = (time_ms + SHANGHAI_MS) // DAY_MS
    split = np.where(day >= TEST_DAY, TEST, np.where(day == TEST_DAY - 1, VALID, TRAIN))
    split = split.astype(np.int8)
    report("encoding fields")
    sides = {name: side for name, side in _SIDES.items() if name != "price"}
    fields, categorical = encode_frame(frame, sides, split == TRAIN)
    fields = (*fields, Field("price", PRICE_BUCKETS, "item"))
    categorical = np.column_stack([categorical, log2_bucket(frame["price"], PRICE_BUCKETS)])

    report("building histories")
    user, click = numbered(frame["userid"]), frame["clk"].to_numpy() == 1
    history = {}
    for name, of in _HISTORIES.items():
        ids = categorical[:, list(sides).index(of)]
        earlier = earlier_items(user, time_ms, user[click], time_ms[click], ids[click], HISTORY)
        history[name] = HistoryField(earlier, of)
    return FieldTable.of(
        "taobao-ad", fields, categorical, {"click": frame["clk"]}, split,
        user=user, time_ms=time_ms, history=history,
    )  # fmt: skip


def read_frames(folder: Path) -> Frames:
    """The domain `taobao_ad`: impressions of ads, and clicks."""
    frame = _read_joined(folder, quiet)
    shown = frame.select(
        user_id="userid",
        item_id="adgroup_id",
        time=pl.col("time_stamp") * 1000,
        event=pl.lit("show"),
        pid="pid",
    )
    clicked = shown.filter(frame["clk"] == 1).with_columns(event=pl.lit("click"))
    items = frame.select(
        pl.col("cate_id", "campaign_id", "customer", "brand").cast(pl.String),
        item_id="adgroup_id", price="price",
    )  # fmt: skip
    users = frame.select(pl.col(PROFILE).cast(pl.String), user_id="userid")
    return Frames(pl.concat([shown, clicked]), items.unique("item_id"), users.unique("user_id"))


def read_mlcc(folder: Path, report: Report = quiet) -> FieldTable:
    """17 hashed fields, missing numbers 0, missing price 0.0, shuffled 90/1/9 with seed 42."""
    frame = _read_joined(folder, report).with_columns(pl.col(pl.Int32, pl.Float64).fill_null(0))
    report("hashing fields")
    sides: dict[str, Side] = {**_SIDES, "time_stamp": "context"}
    fields, categorical = hashed_frame(frame, sides, HASH_ROWS)
    split = random_split(len(frame), 0.09, 1 / 91, SHUFFLE_SEED, "taobao-ad-mlcc")
    time_ms = frame["time_stamp"].to_numpy() * 1000
    return FieldTable.of(
        "taobao-ad-mlcc", fields, categorical, {"click": frame["clk"]}, split,
        user=numbered(frame["userid"]), time_ms=time_ms,
    )  # fmt: skip


def read_x1(folder: Path, seed: int = 0, report: Report = quiet) -> FieldTable:
    """TaobaoAd_x1: 17 fields, three histories of up to 50 steps, values seen < 10 times unknown."""
    ids = [name for name in _SIDES if name not in ("price", "pid")]
    columns: Columns = {
        "clk": pl.Float64,
        **dict.fromkeys(_LISTS_X1, pl.String),
        **dict.fromkeys(ids, pl.Float64),
        "price": pl.Float64,
        "pid": pl.String,
        "btag": pl.Int32,
    }

    def narrow(frame: pl.LazyFrame) -> pl.LazyFrame:
        lists = pl.col(list(_LISTS_X1)).str.split("^").cast(pl.List(pl.Int32)).list.reverse()
        return frame.with_columns(pl.col(ids).cast(pl.Int32), lists)

    parts = ("train.csv", "test.csv")
    frame, part = read_parts(folder, parts, columns, "clk", list(_LISTS_X1), narrow, report)
    split = np.where(part == 0, TRAIN, TEST).astype(np.int8)
    drawn = np.random.default_rng(seed).permutation(np.count_nonzero(part == 0))
    split[drawn[: max(1, round(VALID_SHARE_X1 * len(drawn)))]] = VALID
    train = split == TRAIN

    report("encoding fields")
    sides: dict[str, Side] = {**_SIDES, "btag": "context"}
    fields, categorical = encode_frame(frame, sides, train, MIN_COUNT)
    history = {}
    for name, of in _LISTS_X1.items():
        at = list(sides).index(of)
        listed = frame[name].filter(pl.Series(train)).explode(
            keep_nulls=False, empty_as_null=False
        )  # fmt: skip
        seen = pl.concat([frame[of].filter(pl.Series(train)), listed.rename(of)])
        known = vocabulary(seen, np.ones(len(seen), bool), MIN_COUNT)
        categorical[:, at] = encode(frame[of], known)
        fields = (*fields[:at], Field(of, len(known) + 1, sides[of]), *fields[at + 1 :])
        history[name] = HistoryField(list_history(frame[name], known, HISTORY), of)
    return FieldTable.of(
        "taobao-ad-x1", fields, categorical, {"click": frame["clk"]}, split,
        user=numbered(frame["userid"]), history=history,
    )  # fmt: skip


def _read_joined(folder: Path, report: Report) -> pl.DataFrame:
    report("reading raw_sample.csv")
    path = find(folder, "raw_sample.csv")
    sample = read_table(path, _SAMPLE)
    check_times(path, sample["time_stamp"])
    check_values(path, sample["clk"], (0, 1))
    check_values(path, (sample["clk"] + sample["nonclk"]).alias("clk + nonclk"), (1,))
    report("reading ad_feature.csv")
    path = find(folder, "ad_feature.csv")
    ads = read_table(
        path, _AD, ("brand", "price"),
        transform=lambda f: f.with_columns(pl.col("brand").cast(pl.Int32, strict=False)),
    )  # fmt: skip
    check_unique(path, ads["adgroup_id"])
    report("reading user_profile.csv")
    path = find(folder, "user_profile.csv")
    users = read_table(path, _USER, PROFILE)
    check_unique(path, users["userid"])
    frame = (
        sample.drop("nonclk")
        .rename({"user": "userid"})
        .join(ads, on="adgroup_id", how="left", maintain_order="left")
        .join(users.with_columns(_found=True), on="userid", how="left", maintain_order="left")
    )
    for missing, what in ((frame["cate_id"], "an ad"), (frame["_found"], "a user")):
        if missing.has_nulls():
            suspect(
                f"taobao-ad: {missing.null_count()} rows have {what} without attributes; they get "
                "the unknown id"
            )
    return frame.drop("_found")
