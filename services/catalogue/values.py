"""The values of an item: checked at the door, and as the columns of the item table hold them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import Counter

from models.nearest import nearest
from models.schema.declaration import Declaration, Field
from models.schema.layout import column_of
from models.schema.stored import MOST, stored
from protos.tandem.v1.catalogue_pb2 import Item
from protos.tandem.v1.records_pb2 import FieldValue
from services.common.rpc import invalid
from services.common.validate import LATEST_MS, LEAST_MS, MOST_NUMBER, check_id

MAX_TEXT_BYTES = 10_000  # of a text field or a display text
MAX_VALUES = 1_000  # of a bag, some of which are kept

# The member of FieldValue by the field's type.
_MEMBER = {
    "category": "text",
    "text": "text",
    "bag": "texts",
    "number": "number",
    "time": "number",
    "flag": "flag",
    "vector": "numbers",
    "numbers": "numbers",
}

UNDECLARED_VALUES = Counter(
    "tandem_catalogue_undeclared_values_total",
    "Values of items' fields that schema.yaml does not list: they count as none until it does; many"
    " mean that the feed and schema.yaml have drifted apart.",
    ["field"],
)


def check_fields(place: str, item: Item, declaration: Declaration) -> None:
    """Refuse a field that is not declared, and a value that is none of its field's."""
    for name, value in item.fields.items():
        where = f"{place}.fields[{name[:64]!r}]"
        if name in declaration.display:
            _check_text(where, value, "a display text")
        elif (field := declaration.item_field.get(name)) is None:
            known = (*declaration.item_field, *declaration.display)
            raise invalid(
                where, f"is not declared in schema.yaml{nearest(name, known)}: leave it out, or"
                " declare it under item.fields or item.display"
            )  # fmt: skip
        else:
            _check(where, value, field)


def _check(where: str, value: FieldValue, field: Field) -> None:
    kind, wanted = value.WhichOneof("kind"), _MEMBER[field.type]
    if kind is None:
        return  # taken back
    if kind != wanted:
        raise invalid(where, f"is a {field.type}: set `{wanted}`, not `{kind}`")
    if field.type == "text":
        _check_text(where, value, "a text")
    elif field.type in ("category", "bag"):
        texts = [value.text] if kind == "text" else value.texts.values
        if len(texts) > MAX_VALUES:
            raise invalid(where, f"has {len(texts)} values; at most {MAX_VALUES} are accepted")
        for text in texts:
            check_id(where, text)
        if any(field.vocabulary and not field.vocabulary.lists(text) for text in texts):
            UNDECLARED_VALUES.labels(field.name).inc()
    elif field.type == "number" and not abs(value.number) < MOST_NUMBER:
        raise invalid(where, f"is {value.number:g}; give less than {MOST_NUMBER:g}")
    elif field.type == "time" and not LEAST_MS <= abs(value.number) <= LATEST_MS:
        raise invalid(where, f"{value.number:g} are no ms since 1970 (or are they s?)")
    elif kind == "numbers":
        numbers = value.numbers.values
        if len(numbers) != field.length:
            raise invalid(where, f"has {len(numbers)} numbers; schema.yaml says {field.length}")
        most = MOST[field.dtype]
        if not all(abs(number) < most for number in numbers):
            raise invalid(where, f"holds a number that is not finite or not below {most:g}")


def _check_text(where: str, value: FieldValue, what: str) -> None:
    kind = value.WhichOneof("kind")
    if kind not in ("text", None):
        raise invalid(where, f"is {what}: set `text`, not `{kind}`")
    if len(value.text.encode()) > MAX_TEXT_BYTES:
        raise invalid(where, f"has more than {MAX_TEXT_BYTES} bytes")


def plain(value: FieldValue) -> Any:
    """What a FieldValue holds, as `models/schema/stored.py` takes it; None for nothing."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    held = getattr(value, kind)
    return list(held.values) if kind in ("texts", "numbers") else held


def message(value: Any, field: Field | None) -> FieldValue:
    """The FieldValue of what `plain` gives of a field (None: of a display text)."""
    found = FieldValue()
    member = "text" if field is None else _MEMBER[field.type]
    if member in ("texts", "numbers"):
        getattr(found, member).values.extend(value)
    else:
        setattr(found, member, value)
    return found


def column(field: Field, values: Sequence[FieldValue | None]) -> np.ndarray:
    """The column of a field, of N items; the default of what has no value, and of a value that the
    field cannot hold (since it was declared otherwise)."""
    feature = column_of(field)
    found = np.zeros(len(values), np.dtype((feature.dtype, feature.shape)))
    found[...] = feature.default
    for i, value in enumerate(values):
        if value is None or (held := plain(value)) is None:
            continue
        if value.WhichOneof("kind") != _MEMBER[field.type]:
            continue
        if field.type in ("vector", "numbers") and len(held) != field.length:
            continue
        if isinstance(held, float) and not math.isfinite(held):
            continue
        # A number that was brought when the field was of another type may be out of its range.
        with contextlib.suppress(ValueError, OverflowError, TypeError):
            found[i] = stored(field, held)
    return found


def values_of(fields: Mapping[str, Any], declaration: Declaration) -> dict[str, FieldValue]:
    """Messages of what is known of an item by name; of names with None nothing."""
    return {
        name: message(value, declaration.item_field.get(name))
        for name, value in fields.items()
        if value is not None
    }
