"""How rows hold the value of a field: one definition for imports, feeds and requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from models.schema.declaration import Field
from models.schema.groups import FeatureGroup
from models.schema.layout import column_of, value_id

PIECE = 3  # characters


def stored(field: Field, value: Any) -> Any:
    """A value as its column holds it (`column_of`): None is the declared default, a list that is
    longer than there is room for is cut, a value that is not declared is the unknown one.

    `value`: text of a category or text, texts of a bag, a number, true or false, ms since 1970,
    numbers of a vector or numbers. ValueError for a vector of another length.
    """
    column = column_of(field)
    if value is None:
        return column.default if not column.shape else np.zeros(column.shape, column.dtype)
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


def records(
    group: FeatureGroup, fields: dict[str, Field], values: dict[str, list[Any]]
) -> np.ndarray:
    """Records [N] of a group from lists of N values by field; fields without any have defaults."""
    count = len(next(iter(values.values()), []))
    found = np.zeros(count, group.dtype)
    found[...] = group.defaults()
    for name, column in values.items():
        for i, value in enumerate(column):
            if value is not None:
                found[name][i] = stored(fields[name], value)
    return found
