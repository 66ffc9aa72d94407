"""Criteo display advertising: 13 counts and 26 categorical fields, in the three usual protocols.

- x1 (AFN, BARS): `train.csv`, `valid.csv`, `test.csv` with header; the counts stay numbers.
- x4 (AutoInt, BARS 001): the Kaggle `train.txt`, cut by StratifiedKFold, or the three files of the
  same cut; counts become categories by `count_category`, values seen < 10 times unknown.
- MLCC (official code): the Kaggle file cut 90/1/9 in its own order; counts below 10 or missing are
  "0", otherwise ids of their own; everything hashed to a million rows per field.

Specification 1.4 and 5.4. The meaning of the fields is not disclosed: all are of the context.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.data.columns import encode_frame, hashed_frame
from models.data.delimited import read_parts, read_table
from models.data.readers import three_parts
from models.data.readers.three_parts import PARTS
from models.data.source_files import Report, check_values, find, quiet
from models.data.tables import TEST, TRAIN, VALID, FieldTable, Side, ordered_split

COUNTS = tuple(f"I{i}" for i in range(1, 14))
CODES = tuple(f"C{i}" for i in range(1, 27))
KAGGLE = "train.txt"
MIN_COUNT_X4 = 10
FOLD_SEED = 2018
HASH_ROWS = 1_000_000

_SIDES: dict[str, Side] = dict.fromkeys((*COUNTS, *CODES), "context")
_RAW: dict[str, type[pl.DataType]] = {
    "label": pl.Float64,
    **dict.fromkeys(COUNTS, pl.Float64),  # whole numbers, in some copies written as 1.0
    **dict.fromkeys(CODES, pl.String),
}


def read_x1(folder: Path, report: Report = quiet) -> FieldTable:
    """Criteo_x1: 13 dense numbers, 26 fields whose vocabularies hold every training value."""
    sides: dict[str, Side] = dict.fromkeys(CODES, "context")
    return three_parts.read(folder, "criteo-x1", sides, report, numbers=COUNTS)


def read_x4(folder: Path, report: Report = quiet) -> FieldTable:
    """Criteo_x4_001: 39 fields, values seen fewer than 10 times in training unknown.

    From the Kaggle file the cut is StratifiedKFold(10, seed 2018), fold 0 test, fold 1 validation;
    only scikit-learn 0.19.1 draws the rows of the benchmark, newer ones others of the same sizes.
    """
    if find(folder, KAGGLE, PARTS[0]).name.startswith(KAGGLE):
        frame = _read_kaggle(folder, report)
        report("splitting")
        split = stratified_folds(frame["label"].to_numpy())
    else:
        frame, split = read_parts(folder, PARTS, _RAW, "label", (*COUNTS, *CODES), _codes, report)
    report("encoding fields")
    frame = frame.with_columns(
        pl.Series(name, count_category(frame[name].fill_null(0).to_numpy())) for name in COUNTS
    )
    fields, categorical = encode_frame(frame, _SIDES, split == TRAIN, MIN_COUNT_X4)
    return FieldTable.of("criteo-x4", fields, categorical, {"click": frame["label"]}, split)


def read_mlcc(folder: Path, report: Report = quiet) -> FieldTable:
    """The MLCC authors' protocol: file order 90/1/9, hashed values, no frequency filter."""
    frame = _read_kaggle(folder, report)
    report("hashing fields")
    large = [
        pl.when(pl.col(n) >= 10).then(pl.col(n)).otherwise(0).fill_null(0).alias(n) for n in COUNTS
    ]
    frame = frame.with_columns(large)
    split = ordered_split(len(frame), 0.9, 0.01, "criteo-mlcc")
    fields, categorical = hashed_frame(frame, _SIDES, HASH_ROWS, dict.fromkeys(CODES, "08x"))
    return FieldTable.of("criteo-mlcc", fields, categorical, {"click": frame["label"]}, split)


def count_category(counts: np.ndarray) -> np.ndarray:
    """int32: floor(ln(x)^2) where x > 2, else x itself (specification 1.4, the code's rule)."""
    squared = np.floor(np.log(np.maximum(counts, 1)) ** 2)
    return np.where(counts > 2, squared, counts).astype(np.int32)


def stratified_folds(label: np.ndarray, folds: int = 10, seed: int = FOLD_SEED) -> np.ndarray:
    """Split int8[N]: fold 0 of a shuffled stratified k-fold is test, fold 1 validation."""
    from sklearn.model_selection import StratifiedKFold  # here: only these protocols need it

    split = np.full(len(label), TRAIN, np.int8)
    cutter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    for part, (_, rows) in zip((TEST, VALID), cutter.split(label, label), strict=False):
        split[rows] = part
    return split


def _read_kaggle(folder: Path, report: Report) -> pl.DataFrame:
    report(f"reading {KAGGLE}")
    path = find(folder, KAGGLE)
    frame = read_table(path, _RAW, (*COUNTS, *CODES), "\t", header=False, transform=_codes)
    check_values(path, frame["label"], (0, 1), header=False)
    return frame


def _codes(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Eight hexadecimal digits fit into four bytes: a quarter of the memory of their text."""
    return frame.with_columns(
        pl.col(COUNTS).cast(pl.Int32), pl.col(CODES).str.to_integer(base=16, dtype=pl.UInt32)
    )
