"""Reads the Amazon Beauty development set (5-core, one user per line) with item attributes.

The files are those of https://github.com/RUCAIBox/CIKM2020-S3Rec (`data/Beauty.txt` and
`data/Beauty_item2attributes.json`), made from the Amazon product data of J. McAuley. Research use
only, no redistribution: Tandem ships this reader and no data. A line is a user followed by the
items in order; an item's attributes start with the brand, where it is frequent, and go on from
coarse to leaf category.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl

from models.data.errors import DataError
from models.data.own.prepared import Frames
from models.data.sequences import Sequences, from_events
from models.data.source_files import find, lines_of, read_bytes

LAST_MS, DAY_MS = 1_405_987_200_000, 86_400_000  # 2014-07-22, about when the data end
SEQUENCES_FILE = "Beauty.txt"
ATTRIBUTES_FILE = "Beauty_item2attributes.json"
_ID = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)  # no two spellings of one number; fits 64 bits


def read(folder: Path) -> Sequences:
    """Sequences with `item_attributes`; DataError names the file, the line and what is wrong."""
    path = find(folder, SEQUENCES_FILE)
    users, items = [], []
    for number, line in enumerate(lines_of(path), 1):
        words = line.split()
        if not all(_ID.fullmatch(word) for word in words) or not words:
            raise DataError(
                f"{path}: line {number}: expected a user and items as whole numbers of at most 18"
                f" digits, found {line[:60]!r}"
            )
        user, *bought = map(int, words)
        if not bought:
            raise DataError(f"{path}: line {number}: user {user} has no items")
        users.append(np.full(len(bought), user))
        items.append(np.array(bought))
    return from_events(
        "amazon-beauty",
        np.concatenate(users),
        np.concatenate(items),
        attributes=read_attributes(find(folder, ATTRIBUTES_FILE)),
    )


def read_frames(folder: Path) -> Frames:
    """The domain `amazon_beauty`. The files say the order of a user's purchases and no times: each
    is taken to be a day before the next, and the last ones to be of one day."""
    found = read(folder)
    from_end = np.concatenate([np.arange(n, 0, -1) for n in found.lengths])
    user = np.repeat(np.arange(1, len(found) + 1), found.lengths)
    events = {
        "user_id": user,
        "item_id": np.array(found.item_ids)[found.items - 1],
        "time": LAST_MS - from_end * DAY_MS,
        "event": ["buy"] * len(user),
    }
    attributes = [[str(number) for number in each] for each in found.item_attributes or ()]
    items = {"item_id": found.item_ids, "attributes": attributes}
    return Frames(pl.DataFrame(events), pl.DataFrame(items))


def read_attributes(path: Path) -> dict[str, tuple[int, ...]]:
    """Attribute numbers of each item id, in the file's order."""
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object of item -> list of attributes")
    for item, numbers in found.items():
        if not isinstance(numbers, list) or not all(isinstance(n, int) for n in numbers):
            raise DataError(f"{path}: item {item}: expected a list of integers, found {numbers!r}")
    return {item: tuple(numbers) for item, numbers in found.items()}
