"""MovielensLatest_x1: tagging records (user, item, tag) as binary classification.

`train.csv`, `valid.csv`, `test.csv` with `label, user_id, item_id, tag_id` (random 7:2:1, two
sampled negatives per positive): the smallest useful anchor of the BARS tables (specification 1.4).
"""

from __future__ import annotations

from pathlib import Path

from models.data.readers import three_parts
from models.data.source_files import Report, quiet
from models.data.tables import FieldTable, Side

_SIDES: dict[str, Side] = {"user_id": "user", "item_id": "item", "tag_id": "context"}


def read(folder: Path, report: Report = quiet) -> FieldTable:
    """Three fields, one task; vocabularies hold every training value."""
    return three_parts.read(folder, "movielens-tags", _SIDES, report, task="tagged", user="user_id")
