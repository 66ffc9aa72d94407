"""Avazu click-through data: ten days of mobile advertisements, in three protocols.

- x1 (AFN, BARS): `train.csv`, `valid.csv`, `test.csv` with `label, feat_1 ... feat_22`. Validation
  and test AUC differ much (.744 / .764 in BARS): that is the data, not a mistake.
- x4 (AutoInt, BARS 001): the Kaggle `train.csv` cut by StratifiedKFold, or the three files of the
  same cut; `id` dropped, `hour` taken apart, values seen once unknown.
- MLCC (official code): shuffled 90/1/9, 22 fields with the raw hour, hashed.

Specification 1.4 and 5.4.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.data.columns import encode_frame, hashed_frame
from models.data.delimited import read_parts, read_table
from models.data.errors import DataError
from models.data.readers import three_parts
from models.data.readers.criteo import HASH_ROWS, stratified_folds
from models.data.readers.three_parts import PARTS
from models.data.source_files import Report, check_values, find, locate, quiet
from models.data.tables import TRAIN, FieldTable, Side, random_split

FEATURES_X1 = tuple(f"feat_{i}" for i in range(1, 23))
MIN_COUNT_X4 = 2
SHUFFLE_SEED = 42  # the official code shuffles without one

# In the owner's order; hexadecimal codes are read as numbers.
HEX = (
    "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model",
)  # fmt: skip
_SIDES: dict[str, Side] = {
    "hour": "context",
    "C1": "context",
    "banner_pos": "context",
    **dict.fromkeys(HEX[:6], "context"),
    **dict.fromkeys((*HEX[6:], "device_type", "device_conn_type"), "user"),
    **dict.fromkeys((f"C{i}" for i in range(14, 22)), "context"),
}
_RAW: dict[str, type[pl.DataType]] = {
    "id": pl.String,
    "click": pl.Float64,
    **{name: pl.String if name in HEX else pl.Int32 for name in _SIDES},
}


def read_x1(folder: Path, report: Report = quiet) -> FieldTable:
    """Avazu_x1: 22 anonymous fields; vocabularies hold every training value."""
    sides: dict[str, Side] = dict.fromkeys(FEATURES_X1, "context")
    return three_parts.read(folder, "avazu-x1", sides, report)


def read_x4(folder: Path, report: Report = quiet) -> FieldTable:
    """Avazu_x4_001: 24 fields (hour, weekday, weekend instead of the time stamp), min count 2.

    Given the Kaggle file alone (no valid.csv) it is cut by StratifiedKFold(10, seed 2018); only
    scikit-learn 0.19.1 draws the rows of the benchmark, newer ones others of the same sizes.
    """
    if locate(folder, "valid.csv"):
        frame, split = read_parts(folder, PARTS, _RAW, "click", (), _narrow, report)
    else:
        frame = _read_kaggle(folder, report)
        report("splitting")
        split = stratified_folds(frame["click"].to_numpy())
    time_ms = hour_ms(frame["hour"])
    report("encoding fields")
    moment = pl.Series(time_ms).cast(pl.Datetime("ms"))
    weekday = moment.dt.weekday()  # 1 Monday .. 7 Sunday
    frame = frame.with_columns(
        hour=moment.dt.hour(), weekday=weekday, weekend=(weekday >= 6).cast(pl.Int8)
    )
    sides: dict[str, Side] = {**_SIDES, "weekday": "context", "weekend": "context"}
    fields, categorical = encode_frame(frame, sides, split == TRAIN, MIN_COUNT_X4)
    labels = {"click": frame["click"]}
    return FieldTable.of("avazu-x4", fields, categorical, labels, split, time_ms=time_ms)


def read_mlcc(folder: Path, report: Report = quiet) -> FieldTable:
    """The MLCC authors' protocol: shuffled 90/1/9, 22 hashed fields, raw hour."""
    frame = _read_kaggle(folder, report)
    report("hashing fields")
    fields, categorical = hashed_frame(frame, _SIDES, HASH_ROWS, dict.fromkeys(HEX, "08x"))
    split = random_split(len(frame), 0.09, 1 / 91, SHUFFLE_SEED, "avazu-mlcc")
    labels, time_ms = {"click": frame["click"]}, hour_ms(frame["hour"])
    return FieldTable.of("avazu-mlcc", fields, categorical, labels, split, time_ms=time_ms)


def hour_ms(hour: pl.Series) -> np.ndarray:
    """int64[N]: milliseconds of YYMMDDHH (UTC); DataError names the first row that is none."""
    text = (hour.cast(pl.Int64) + 2_000_000_000).cast(pl.String)
    moment = (text + "00").str.to_datetime("%Y%m%d%H%M", strict=False, time_unit="ms")
    if moment.has_nulls():
        row = int(moment.is_null().arg_max() or 0)
        raise DataError(f"avazu: row {row}: hour is {hour[row]}, expected YYMMDDHH")
    return moment.cast(pl.Int64).to_numpy()


def _read_kaggle(folder: Path, report: Report) -> pl.DataFrame:
    report("reading train.csv")
    path = find(folder, "train.csv", "train")
    frame = read_table(path, _RAW, transform=_narrow)
    check_values(path, frame["click"], (0, 1))
    return frame


def _narrow(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.drop("id").with_columns(pl.col(HEX).str.to_integer(base=16, dtype=pl.UInt32))
