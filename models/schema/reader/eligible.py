"""Conditions of eligibility: `in_stock`, `not adult`, `countries has user.country`, `price < 9`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from models.schema.declaration import Condition, Field
from models.schema.reader.kinds import NAME, unknown
from models.yaml_reader.places import Place, Wrong
from models.yaml_reader.values import NUMBER, text_of

COMPARISON = re.compile(r"(\S+) +(has|==|!=|<=|>=|<|>) +(\S.*)")
REFERENCE = re.compile(r"(user|context)\.(\S+)")
HOW = "Write a flag, `not` and a flag, or a comparison like `countries has user.country`"
ORDERED = ("number", "time")


def condition_of(
    place: Place, items: Mapping[str, Field], others: Mapping[str, Mapping[str, Field]]
) -> Condition:
    """The condition that stands there; `others` are the fields of "user" and "context". Wrong."""
    text = text_of(place)
    if found := COMPARISON.fullmatch(text):
        name, compare, with_what = found.groups()
        return _comparison(text, name, compare, with_what, items, others)
    name = text.removeprefix("not ").strip()
    if not NAME.fullmatch(name):
        raise Wrong(f"{text!r} is no condition", HOW)
    if (field := items.get(name)) is None:
        raise Wrong(*unknown("field of items", name, items))
    if field.type != "flag":
        raise Wrong(f"{name} is no flag but a {field.type}", HOW)
    return Condition(text, name, "is not" if text.startswith("not ") else "is")


def _comparison(
    text: str,
    name: str,
    compare: str,
    with_what: str,
    items: Mapping[str, Field],
    others: Mapping[str, Mapping[str, Field]],
) -> Condition:
    if (field := items.get(name)) is None:
        raise Wrong(*unknown("field of items", name, items))
    made = Condition(text, name, compare)  # type: ignore[arg-type]  # what the pattern lets pass
    if compare == "has" and field.type != "bag":
        raise Wrong(f"{name} is no bag but a {field.type}", "Write == for a category")
    if compare in ("==", "!=") and field.type != "category":
        raise Wrong(f"{name} is no category but a {field.type}", HOW)
    if compare in ("<", "<=", ">", ">=") and field.type not in ORDERED:
        raise Wrong(f"{name} is no number or time but a {field.type}", HOW)
    if with_what == "now":
        if field.type != "time":
            raise Wrong(f"{name} is no time but a {field.type}", "Compare a field of type time")
        return Condition(text, name, made.compare, "now")
    if reference := REFERENCE.fullmatch(with_what):
        side, of = reference[1], reference[2]
        if (other := others[side].get(of)) is None:
            raise Wrong(*unknown(f"field of the {side}", of, others[side]))
        _check_alike(field, other, f"{side}.{of}")
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
        if NUMBER.fullmatch(text):
            return float(text)
        raise Wrong(f"{text!r} is no number", "Write a number, user.NAME or context.NAME")
    if field.type == "time":
        raise Wrong(f"{text!r} is no time here", "Compare it with `now`")
    value = text.strip("'\"")
    vocabulary = field.vocabulary
    if vocabulary and vocabulary.values and value not in vocabulary.values:
        reason = f"{value!r} is not one of the values of {field.name}"
        raise Wrong(reason, "Write one of its values, user.NAME or context.NAME")
    return value
