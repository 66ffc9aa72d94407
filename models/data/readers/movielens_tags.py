"""MovielensLatest_x1: tagging records (user, item, tag) as binary classification.

`train.csv`, `valid.csv`, `test.csv` with `label, user_id, item_id, tag_id` (random 7:2:1, two
sampled negatives per positive): the smallest useful anchor of the BARS tables (specification 1.4).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.data.columns import encode_frame, numbered
from models.data.delimited import read_parts
from models.data.readers.criteo import PARTS
from models.data.source_files import Report, quiet
from models.data.tables import TRAIN, FieldTable, Side

_SIDES: dict[str, Side] = {"user_id": "user", "item_id": "item", "tag_id": "context"}


def read(folder: Path, report: Report = quiet) -> FieldTable:
    """Three fields, one task; vocabularies hold every training value."""
    columns = dict.fromkeys(("label", *_SIDES), pl.Float64)  # some copies write ids as 1.0

    def narrow(frame: pl.LazyFrame) -> pl.LazyFrame:
        return frame.with_columns(pl.col(list(_SIDES)).cast(pl.Int32))

    frame, rows = read_parts(folder, PARTS, columns, "label", (), narrow, report)
    split = np.repeat(np.arange(3, dtype=np.int8), rows)
    report("encoding fields")
    fields, categorical = encode_frame(frame, _SIDES, split == TRAIN)
    return FieldTable.of(
        "movielens-tags", fields, categorical, {"tagged": frame["label"]}, split,
        user=numbered(frame["user_id"]),
    )  # fmt: skip
