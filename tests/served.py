"""One row as the readers of many serve it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from feature_store.codec import RowStatus
from feature_store.reader import serve_many
from models.schema.groups import FeatureGroup


class Served(NamedTuple):
    record: np.void
    age_s: float
    status: RowStatus


def serve_one(group: FeatureGroup, row: bytes | None, now_ms: int) -> Served:
    """The record of one row, or the declared defaults."""
    records, ages_s, status = serve_many(group, [row], now_ms)
    return Served(records[0], float(ages_s[0]), RowStatus(status[0]))
