"""The kinds of values in a file: how each is read, and its JSON Schema.

They are metadata of pydantic fields. A value that is wrong is reported and replaced by a harmless
one, its field's default if it has one, so that reading goes on and tells everything at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeAlias, TypeVar

import yaml
from pydantic import BeforeValidator, ValidationInfo
from pydantic_core import PydanticOmit, PydanticUseDefault, core_schema

from models.yaml_reader.places import Place, Reading, Wrong, cannot_stand

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_FIX = "Use 1 to 64 letters, digits, dots, dashes and underscores"
# RFC 3339 with whole milliseconds at most.
TIMESTAMP = re.compile(
    r"[12]\d{3}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,3})?(Z|[+-]\d{2}:\d{2})", re.ASCII
)
NUMBER = re.compile(r"[-+]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][-+]?\d{1,3})?")
OCTAL = re.compile(r"[-+]?0[0-9]+")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STR, INT, FLOAT, BOOL, TIME = (
    f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "timestamp")
)

Schema: TypeAlias = dict[str, Any]
T = TypeVar("T")

_CONSTRUCTOR = yaml.constructor.SafeConstructor()  # holds nothing between values


@dataclass(frozen=True, eq=False)
class Reads:
    """One kind of value. `read` raises Wrong; `harmless` stands for a wrong one: its field's
    default, in a list a value, and in a mapping nothing."""

    read: Callable[[Place], Any]
    schema: Schema
    harmless: Any = PydanticUseDefault

    def __get_pydantic_core_schema__(self, *_: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, *_: Any) -> Schema:
        return dict(self.schema)

    def _validate(self, place: Place, info: ValidationInfo[Reading]) -> Any:
        try:
            return self.read(place)
        except Wrong as wrong:
            info.context.add(wrong.place or place, wrong.reason, wrong.fix)
        if self.harmless in (PydanticOmit, PydanticUseDefault):
            raise self.harmless
        return self.harmless


def instant_ms(text: str) -> int | None:
    """A timestamp with its zone as ms since the epoch; None when it is not one."""
    if not TIMESTAMP.fullmatch(text):
        return None
    try:
        return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)
    except ValueError:  # the 31st of June
        return None


def _instant(place: Place) -> float:
    tag, text = place.plain
    if tag in (TIME, STR) and (ms := instant_ms(text)) is not None:
        return ms
    raise Wrong(
        f"{text!r} is not an instant",
        "Write date, time and zone like 2026-12-01T09:00:00Z or 2026-12-01T10:00:00+01:00",
    )


def text_of(place: Place) -> str:
    """A scalar's text; Wrong for anything that YAML takes for something else."""
    tag, text = place.plain
    if tag == STR and text:
        return text
    if tag and text:
        raise Wrong(f"{text!r} is not text", "Write it in quotes if it is meant as one")
    raise Wrong("text is missing here", "Write a name, in quotes if YAML takes it for a value")


def _name(place: Place) -> str:
    if NAME.fullmatch(name := text_of(place)):
        return name
    raise Wrong(f"{name!r} is not a name", NAME_FIX)


def _switch(place: Place) -> bool:
    tag, text = place.plain
    if tag == BOOL and text in ("true", "false"):
        return text == "true"
    raise Wrong(f"{text!r} is not a switch", "Write `true` or `false`")


def value_of(place: Place) -> Any:
    """A scalar as the Python value that YAML gives it; who asks checks its type."""
    tag, text = place.plain
    if tag not in (STR, INT, FLOAT, BOOL):
        return text or None
    if tag in (INT, FLOAT) and not NUMBER.fullmatch(text):
        return text  # 18:30, 0x1f, 1_000: numbers to YAML, which nobody means as one
    if tag == INT and OCTAL.fullmatch(text):
        return text  # 010: 8 to YAML
    try:
        return _CONSTRUCTOR.construct_object(place.node)
    except (ValueError, LookupError):  # an explicit tag that the text does not fit
        return text


def _number(kind: type[float], accepts: Callable[[float], bool], fix: str, schema: Schema) -> Reads:
    """A number of Python's type `kind`, which a bool is not."""

    def read(place: Place) -> float:
        value = value_of(place)
        if type(value) in (int, kind) and accepts(value):
            return kind(value)
        raise Wrong(f"{place.plain[1]!r} is not such a number", f"Write a {fix}")

    return Reads(read, schema)


def positive(most: float, bound: str = "maximum") -> Reads:
    """A number above 0 and up to `most`, or below it if that is its exclusiveMaximum."""
    below = bound == "exclusiveMaximum"
    fix = f"number above 0 and {'below' if below else 'up to'} {most:.15g}"
    schema = {"type": "number", "exclusiveMinimum": 0, bound: most}
    return _number(float, lambda n: 0 < n < most or (n == most and not below), fix, schema)


def whole(least: int, most: int) -> Reads:
    """A whole number from `least` to `most`."""
    schema = {"type": "integer", "minimum": least, "maximum": most}
    fix = f"whole number from {least} to {most}"
    return _number(int, lambda n: least <= n <= most, fix, schema)


def finite(fix: str = "Write a finite number") -> Reads:
    """A finite float64."""

    def read(place: Place) -> float:
        value = value_of(place)
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
        raise Wrong(f"{place.plain[1]!r} is not a number", fix)

    return Reads(read, {"type": "number"}, 0.0)


def choice(choices: Sequence[str]) -> Reads:
    def read(place: Place) -> str:
        if (text := text_of(place)) in choices:
            return text
        raise Wrong(*cannot_stand(text, choices))

    return Reads(read, {"enum": list(choices)})


def _items(place: Place, info: ValidationInfo[Reading]) -> list[Place]:
    try:
        return place.items()
    except Wrong as wrong:
        info.context.add(place, wrong.reason, wrong.fix)
        return []


def _entries(place: Place, info: ValidationInfo[Reading]) -> dict[str, Place]:
    return info.context.entries(place)


Many: TypeAlias = Annotated[tuple[T, ...], BeforeValidator(_items)]
ByName: TypeAlias = Annotated[dict[str, T], BeforeValidator(_entries)]

NAME_SCHEMA: Schema = {"type": "string", "pattern": f"^{NAME.pattern}$"}
Name = Annotated[str, Reads(_name, NAME_SCHEMA, "")]
Text = Annotated[str, Reads(text_of, {"type": "string", "minLength": 1}, "")]
Number = Annotated[float, finite()]
Seconds = Annotated[float, positive(30 * 86_400)]
Switch = Annotated[bool, Reads(_switch, {"type": "boolean"})]
Instant = Annotated[
    float,
    Reads(
        _instant,
        {"type": "string", "format": "date-time", "pattern": f"^{TIMESTAMP.pattern}$"},
    ),
]
