"""KuaiRand (Pure, 1K, 27K): impressions of short videos with click, like and long view.

Split of this project (specification 1.4): the standard logs only; train = the file of 8-21 April,
validation and test = first and second half by time of the file of 22 April - 8 May. Histories of
each action (the last 50) hold earlier events only, of the whole log, whose videos the training part
knows. Counts become log2 buckets. The statistics of the videos are not read: they sum up the whole
month and would tell the future. Dates are not read either.

27K has 322 million rows: choose a number of users that fits into memory (`users`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import psutil

from models.data.columns import earlier_items, encode_frame, item_bags, log2_bucket, numbered
from models.data.delimited import Columns, read_table
from models.data.errors import DataError
from models.data.own.prepared import Frames
from models.data.source_files import (
    Report,
    check_times,
    check_unique,
    check_values,
    find,
    quiet,
    suspect,
)
from models.data.tables import TEST, TRAIN, VALID, Field, FieldTable, HistoryField, Side

FIRST_LOG, SECOND_LOG = "log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08"
ACTIONS = {"click": "is_click", "like": "is_like", "long_view": "long_view"}
HISTORY = 50
TAG_SLOTS = 4
MIN_COUNT = 2
BUCKETS = 32

_FLAGS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
_LOG: Columns = {
    "user_id": pl.Int32,
    "video_id": pl.Int32,
    "date": pl.Int32,
    "hourmin": pl.Int32,
    "time_ms": pl.Int64,
    **dict.fromkeys(_FLAGS, pl.Int8),
    **dict.fromkeys(
        ("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time"), pl.Float64
    ),
    "is_profile_enter": pl.Int8,
    "is_rand": pl.Int8,
    "tab": pl.Int8,
}
_LOG_USED = ("user_id", "video_id", "date", "hourmin", "time_ms", *ACTIONS.values(), "tab")

USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_USER: Columns = {
    "user_id": pl.Int32,
    "user_active_degree": pl.String,
    **dict.fromkeys(("is_lowactive_period", "is_live_streamer", "is_video_author"), pl.Float64),
    **{n: t for c in USER_COUNTS for n, t in ((c, pl.Float64), (f"{c}_range", pl.String))},
    **dict.fromkeys((f"onehot_feat{i}" for i in range(18)), pl.Float64),
}
_VIDEO: Columns = {
    "video_id": pl.Int32,
    "author_id": pl.Float64,
    "video_type": pl.String,
    "upload_dt": pl.String,
    "upload_type": pl.String,
    "visible_status": pl.String,
    "video_duration": pl.Float64,
    "server_width": pl.Float64,
    "server_height": pl.Float64,
    "music_id": pl.Float64,
    "music_type": pl.Float64,
    "tag": pl.String,
}
_HOUR = pl.col("hourmin") // 100
VIDEO_COUNTS = ("video_duration",)
_USER_SIDES: dict[str, Side] = dict.fromkeys(_USER, "user")
_VIDEO_SIDES: dict[str, Side] = {n: "item" for n in _VIDEO if n not in ("upload_dt", "tag")}
_CONTEXT: dict[str, Side] = {"tab": "context", "hour": "context", "weekday": "context"}


def read(
    folder: Path,
    version: str = "pure",
    users: int | None = None,
    seed: int = 0,
    history: int = HISTORY,
    report: Report = quiet,
) -> FieldTable:
    """The table of a version ("pure", "1k", "27k"), rows by time.

    `users` keeps that many users, drawn with `seed`. DataError before anything is built that would
    not fit into memory.
    """
    name = f"kuairand-{version}"
    profiles, logs = _read_users(folder, version, users, seed, report)
    frame = pl.concat(logs)
    _check_memory(name, len(frame), history)
    split, order = _split(frame["time_ms"].to_numpy(), len(logs[0]))
    frame, split = frame[order], split[order]
    frame = frame.with_columns(
        hour=_HOUR,
        weekday=pl.col("date").cast(pl.String).str.to_date("%Y%m%d", strict=False).dt.weekday(),
    )

    videos = _read_videos(folder, version, frame, report)
    report("encoding fields")
    fields, categorical, bags = _encode(name, frame, profiles, videos, split == TRAIN)

    report("building histories")
    time_ms, user = frame["time_ms"].to_numpy(), numbered(frame["user_id"])
    video = categorical[:, [f.name for f in fields].index("video_id")]
    labels, histories = {}, {}
    for action, column in ACTIONS.items():
        done = labels[action] = frame[column].to_numpy() == 1
        earlier = earlier_items(user, time_ms, user[done], time_ms[done], video[done], history)
        histories[action] = HistoryField(earlier, "video_id")
    return FieldTable.of(
        name, fields, categorical, labels, split,
        bags=bags, history=histories, user=user, time_ms=time_ms,
    )  # fmt: skip


def read_frames(
    folder: Path, version: str = "pure", users: int | None = None, seed: int = 0
) -> Frames:
    """The domain `kuairand`: impressions, and what was done with each, at the time of it."""
    profiles, logs = _read_users(folder, version, users, seed, quiet)
    frame = pl.concat(logs)
    shown = frame.select(
        "user_id",
        item_id="video_id",
        time="time_ms",
        event=pl.lit("show"),
        tab=pl.col("tab").cast(pl.String),
        hour=_HOUR,
    )
    events = [shown] + [
        shown.filter(frame[column] == 1).with_columns(event=pl.lit(action))
        for action, column in ACTIONS.items()
    ]
    videos = _read_videos(folder, version, frame, quiet).select(
        "video_type",
        "upload_type",
        item_id="video_id",
        author=pl.col("author_id").cast(pl.Int64).cast(pl.String),
        music=pl.col("music_id").cast(pl.Int64).cast(pl.String),
        duration="video_duration",
        tags=pl.col("tag").str.split(","),
    )
    met = profiles.join(frame.select("user_id").unique(), on="user_id", how="semi")
    return Frames(
        pl.concat(events),
        videos.unique("item_id", keep="first", maintain_order=True),
        met.select("user_id", "user_active_degree", *USER_COUNTS),
    )


def _read_users(
    folder: Path, version: str, users: int | None, seed: int, report: Report
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """What is known of users, and the two logs, of so many of them."""
    report("reading user features")
    path = find(folder, f"user_features_{version}.csv")
    profiles = read_table(path, _USER, [n for n in _USER if n != "user_id"])
    check_unique(path, profiles["user_id"])
    kept = None
    if users is not None:
        everyone = profiles["user_id"].unique().sort().to_numpy()
        drawn = np.random.default_rng(seed).permutation(everyone)[:users]
        kept = pl.DataFrame({"user_id": drawn}).lazy()
    logs = []
    for log in (FIRST_LOG, SECOND_LOG):
        report(f"reading {log}")
        logs.append(_read_log(folder, f"{log}_{version}", kept))
    return profiles, logs


def _read_videos(folder: Path, version: str, frame: pl.DataFrame, report: Report) -> pl.DataFrame:
    """What is known of the videos that were shown."""
    report("reading video features")
    shown = frame.select("video_id").unique().lazy()
    path = find(folder, f"video_features_basic_{version}.csv")
    videos = read_table(
        path,
        _VIDEO,
        [n for n in _VIDEO if n != "video_id"],
        transform=lambda f: f.drop("upload_dt").join(shown, on="video_id", how="semi"),
    )
    check_unique(path, videos["video_id"], header=None)
    return videos


def _read_log(folder: Path, stem: str, users: pl.LazyFrame | None) -> pl.DataFrame:
    """A log in one file, or in the parts of 27K.

    With `users` the lines that errors name are counted among the rows of those users.
    """
    parts = ("_part1", "_part2") if stem.endswith("_27k") else ("",)
    paths = [find(folder, f"{stem}{part}.csv") for part in parts]

    def narrow(frame: pl.LazyFrame) -> pl.LazyFrame:
        used = frame.select(_LOG_USED)
        return used if users is None else used.join(users, on="user_id", how="semi")

    frames = []
    header = True if users is None else None
    for path in paths:
        frames.append(read_table(path, _LOG, transform=narrow))
        check_times(path, frames[-1]["time_ms"], header, "milliseconds")
        for column in ACTIONS.values():
            check_values(path, frames[-1][column], (0, 1), header)
    return pl.concat(frames)


def _split(time_ms: np.ndarray, first_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Split int8[N] (the second log's halves by time) and the order by time."""
    split = np.full(len(time_ms), TRAIN, np.int8)
    later = time_ms[first_rows:]
    half = np.sort(later)[len(later) // 2]
    split[first_rows:] = np.where(later < half, VALID, TEST)
    return split, np.argsort(time_ms, kind="stable")


def _encode(
    name: str,
    frame: pl.DataFrame,
    profiles: pl.DataFrame,
    videos: pl.DataFrame,
    train: np.ndarray,
) -> tuple[tuple[Field, ...], np.ndarray, dict]:
    """All fields, one side after the other so that only one wide join exists at a time."""
    fields: list[Field] = []
    width = len(_USER_SIDES) + len(_VIDEO_SIDES) + len(_CONTEXT)
    categorical = np.empty((len(frame), width), np.int32)
    groups: tuple[tuple[pl.DataFrame | None, str, dict[str, Side], tuple[str, ...]], ...] = (
        (profiles, "user_id", _USER_SIDES, USER_COUNTS),
        (videos, "video_id", _VIDEO_SIDES, VIDEO_COUNTS),
        (None, "", _CONTEXT, ()),
    )
    for attributes, key, sides, counts in groups:
        part = frame
        if attributes is not None:
            part = frame.select(key).join(
                attributes.unique(key, keep="first", maintain_order=True).with_columns(_found=True),
                on=key, how="left", maintain_order="left",
            )  # fmt: skip
            missing = part["_found"].null_count()
            if missing:
                suspect(f"{name}: {missing} rows have a {key} without features")
        for column, side in sides.items():
            at = len(fields)
            if column in counts:
                categorical[:, at] = log2_bucket(part[column], BUCKETS)
                fields.append(Field(column, BUCKETS, side))
                continue
            found, ids = encode_frame(part.select(column), {column: side}, train, MIN_COUNT)
            categorical[:, at] = ids[:, 0]
            fields.extend(found)
    tags = videos["tag"].str.split(",").list.eval(pl.element().filter(pl.element() != ""))
    bag = item_bags(videos["video_id"], tags, frame["video_id"], train, TAG_SLOTS)
    return tuple(fields), categorical, {"tags": bag}


def _check_memory(name: str, rows: int, history: int) -> None:
    fields = len(_USER_SIDES) + len(_VIDEO_SIDES) + len(_CONTEXT)
    needed = rows * (4 * (fields + len(ACTIONS) * history + TAG_SLOTS) + 64) * 1.5
    free = psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{name}: {rows:,} rows need about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are "
            "free: pass --users N with fewer users"
        )
