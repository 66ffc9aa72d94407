"""Reads the ready cuts of BARS: `train.csv`, `valid.csv`, `test.csv` with a header and one label.

Their values are whole numbers, in some copies written as 1.0. Vocabularies hold every training
value (specification 1.4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from models.data.columns import encode_frame, numbered
from models.data.delimited import Columns, read_parts
from models.data.source_files import Report
from models.data.tables import TRAIN, FieldTable, Side

PARTS = ("train.csv", "valid.csv", "test.csv")


def read(
    folder: Path,
    name: str,
    sides: dict[str, Side],
    report: Report,
    *,
    task: str = "click",
    numbers: tuple[str, ...] = (),
    user: str | None = None,
) -> FieldTable:
    """The table of the fields `sides`; `numbers` stay numbers, `user` is the field of the users."""
    columns: Columns = {
        "label": pl.Float64,
        **dict.fromkeys(numbers, pl.Float32),
        **dict.fromkeys(sides, pl.Float64),
    }

    def narrow(frame: pl.LazyFrame) -> pl.LazyFrame:
        return frame.with_columns(pl.col(list(sides)).cast(pl.Int64))

    frame, split = read_parts(folder, PARTS, columns, "label", (), narrow, report)
    report("encoding fields")
    fields, categorical = encode_frame(frame, sides, split == TRAIN)
    more: dict[str, Any] = {} if user is None else {"user": numbered(frame[user])}
    if numbers:
        more |= {"dense_names": numbers, "dense": frame.select(numbers).to_numpy(order="c")}
    return FieldTable.of(name, fields, categorical, {task: frame["label"]}, split, **more)
