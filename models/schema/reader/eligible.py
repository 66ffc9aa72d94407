"""Conditions of eligibility: `in_stock`, `not adult`, `countries has user.country`, `price < 9`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from models.schema.declaration import Condition, Field
from models.schema.reader.words import NAME, SchemaReading
from models.yaml_reader.places import Place, Wrong
from models.yaml_reader.values import NUMBER, text_of

COMPARISON = re.compile(r"(\S+) +(has|==|!=|<=|>=|<|>) +(\S|\S.*\S)")
REFERENCE = re.compile(r"(user|context)\.(.*)")
QUOTED = re.compile(r"'([^']+)'|\"([^\"]+)\"")
HOW = "Write a flag, `not` and a flag, or a comparison like `countries has user.country`"
ORDERED = ("number", "time")
MOST = 1e38  # of a constant: about what float32 holds

Fields: TypeAlias = Mapping[str, Field | None]  # None: wrong itself


def condition_of(
    place: Place, items: Fields, others: Mapping[str, Fields], reading: SchemaReading
) -> Condition | None:
    """The condition that stands there; `others` are the fields of "user" and "context". None where
    something is wrong, which is reported."""
    try:
        text = text_of(place)
        found = COMPARISON.fullmatch(text)
        name = found[1] if found else text.removeprefix("not ").strip(" ")
        if not found and not NAME.fullmatch(name):
            raise Wrong(f"{text!r} is no condition", HOW)
        if name not in items:
            reading.unknown(place, "field of items", name, items)
        elif (field := items[name]) is not None:
            if found:
                return _comparison(place, text, field, found[2], found[3], others, reading)
            if field.type != "flag":
                raise Wrong(f"{name} is no flag but a {field.type}", HOW)
            return Condition(text, name, "is not" if text.startswith("not ") else "is")
    except Wrong as wrong:
        reading.add(place, wrong.reason, wrong.fix)
    return None


def _comparison(
    place: Place,
    text: str,
    field: Field,
    compare: str,
    with_what: str,
    others: Mapping[str, Fields],
    reading: SchemaReading,
) -> Condition | None:
    name = field.name
    made = Condition(text, name, compare)  # type: ignore[arg-type]  # what the pattern lets pass
    if compare == "has" and field.type != "bag":
        raise Wrong(f"{name} is no bag but a {field.type}", "Write == for a category")
    if compare in ("==", "!=") and field.type != "category":
        fix = "Write `has` for a bag" if field.type == "bag" else HOW
        raise Wrong(f"{name} is no category but a {field.type}", fix)
    if compare in ("<", "<=", ">", ">=") and field.type not in ORDERED:
        raise Wrong(f"{name} is no number or time but a {field.type}", HOW)
    if with_what == "now":
        if field.type != "time":
            raise Wrong(f"{name} is no time but a {field.type}", "Compare a field of type time")
        return Condition(text, name, made.compare, "now")
    if reference := REFERENCE.fullmatch(with_what):
        side, of = reference[1], reference[2]
        if of not in others[side]:
            reading.unknown(place, f"field of the {side}", of, others[side])
            return None
        if (other := others[side][of]) is None:
            return None
        _check_alike(field, other, with_what)
        return Condition(text, name, made.compare, side, of)  # type: ignore[arg-type]
    return Condition(text, name, made.compare, constant=_constant(field, with_what))


def _check_alike(field: Field, other: Field, name: str) -> None:
    """Whether the values of the two can be equal, or be compared."""
    if field.type in ORDERED:
        if other.type != field.type:
            raise Wrong(f"{name} is no {field.type} but a {other.type}", "Compare what is alike")
    elif other.type != "category":
        raise Wrong(f"{name} is no category but a {other.type}", "Compare with a category")


def _constant(field: Field, text: str) -> str | float:
    if field.type == "number":
        if text.isascii() and NUMBER.fullmatch(text) and abs(number := float(text)) < MOST:
            return number
        raise Wrong(f"{text!r} is no number", "Write a number, user.NAME or context.NAME")
    if field.type == "time":
        raise Wrong(f"{text!r} is no time here", "Compare it with `now`")
    quoted = QUOTED.fullmatch(text)
    value = quoted[1] or quoted[2] if quoted else text
    values = field.vocabulary.values if field.vocabulary else ()
    if values and value not in values:
        reason = f"{value!r} is not one of the values of {field.name}"
        raise Wrong(reason, "Write one of its values, user.NAME or context.NAME")
    if not values and not quoted and not NAME.fullmatch(value):
        # Of other vocabularies nobody knows the values: `usr.country` would be one.
        raise Wrong(f"{value!r} may not be meant as a value", "Write it in quotes, or user.NAME")
    return value
