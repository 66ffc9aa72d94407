"""Reads the leave-one-out file of MovieLens 1M: 999,611 `user item` lines in true order.

The file is `data/ml-1m.txt` of https://github.com/kang205/SASRec (items with fewer than five
ratings dropped). MovieLens 1M may not be redistributed: Tandem ships this reader and no data.
"""

from __future__ import annotations

from pathlib import Path

from models.data.sequences import Sequences, read_user_item_lines
from models.data.source_files import find

FILES = ("ml-1m_sasrec.txt", "ml-1m.txt")


def read(folder: Path) -> Sequences:
    """6,040 users and 3,416 items when the file is whole; DataError names file and line."""
    return read_user_item_lines(find(folder, *FILES), "ml-1m")
