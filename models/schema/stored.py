"""How rows hold the value of a field: one definition for imports, feeds and requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from models.schema.declaration import Field
from models.schema.groups import FeatureGroup
from models.schema.layout import column_of, value_id

if TYPE_CHECKING:
    import polars as pl  # which replicas are spared

PIECE = 3  # characters
MOST = {"float32": 1e38, "float16": 65_504.0}  # no larger number fits a row


def stored(field: Field, value: Any) -> Any:
    """A value as its column holds it (`column_of`): a list that is longer than there is room for is
    cut, a value that is not declared is the unknown one.

    `value`: text of a category or text, texts of a bag, a number, true or false, ms since 1970,
    numbers of a vector or numbers. ValueError for a vector of another length.
    """
    column = column_of(field)
    if field.type == "category":
        return value_id(field, value)
    if field.type in ("bag", "text"):
        ids = (
            [value_id(field, each) for each in value]
            if field.type == "bag"
            else pieces(field, value)
        )
        known = list(dict.fromkeys(each for each in ids if each))[: field.slots]
        return np.pad(np.array(known, column.dtype), (0, field.slots - len(known)))
    if field.type in ("vector", "numbers"):
        if len(value) != field.length:
            raise ValueError(f"{field.name}: {len(value)} numbers, declared are {field.length}")
        return np.asarray(value, column.dtype)
    return value


def pieces(field: Field, text: str) -> Iterator[int]:
    """1..buckets of the words of a text and of their pieces of PIECE characters, so that words of
    one stem have pieces in common."""
    for word in text.lower().split():
        whole = f"<{word}>"
        for piece in (whole, *(whole[i : i + PIECE] for i in range(len(whole) - PIECE + 1))):
            yield 1 + xxhash.xxh3_64_intdigest(piece.encode()) % field.buckets


def records(group: FeatureGroup, fields: Iterable[Field], values: pl.DataFrame) -> np.ndarray:
    """Records [N] of a group from a frame of N rows with a column for each field that is known. A
    field without one, and a value that is null, has the declared default."""
    found = np.full(len(values), group.defaults())
    for field in fields:
        if field.name in values.columns:
            for i, value in enumerate(values[field.name].to_list()):
                if value is not None:
                    found[field.name][i] = stored(field, value)
    return found


def most_frequent(hashes: np.ndarray, size: int) -> np.ndarray:
    """uint64[V], V <= size: a learned vocabulary of stored values, 0 being none; those of one
    frequency in the order of their hashes."""
    found, counts = np.unique(hashes[hashes > 0], return_counts=True)
    return found[np.lexsort((found, -counts))[:size]]
