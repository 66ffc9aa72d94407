"""The kinds of values that only a schema.yaml has, and what its parts say of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from models.schema.declaration import NEVER_FADES, ReadBy
from models.yaml_reader import section
from models.yaml_reader.places import Place, Reading, Wrong, suggestion
from models.yaml_reader.values import STR, Reads, choice, text_of

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
RESERVED = ("any", "now", "user", "item", "context", "none", "and", "or", "not", "has")
DURATION = re.compile(r"([1-9]\d{0,8})(s|m|h|d)")
EMPTY: dict[str, Any] = {}  # what a mapping is that is not there
UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

T = TypeVar("T")


class SchemaReading(Reading):
    """One reading of a schema.yaml; `folder` is where the files that it names lie."""

    empty = "Write `format: 1`, `events:`, `tasks:` and `value:`"

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.folder = folder


class Section(section.Section):
    if TYPE_CHECKING:
        files: SchemaReading


def _duration(place: Place) -> float:
    tag, text = place.plain
    if tag == STR and text == "none":
        return NEVER_FADES
    if tag == STR and (found := DURATION.fullmatch(text)):
        return float(int(found[1]) * UNIT_S[found[2]])
    raise Wrong(
        f"{text!r} is not a duration" if text else "a duration is missing here",
        "Write a whole number with its unit (90d, 12h, 30m, 20s), or none for what never ends",
    )


def duration_text(seconds: float) -> str:
    """As a schema.yaml writes it, in the largest unit that is exact."""
    if seconds == NEVER_FADES:
        return "none"
    unit = next(unit for unit in ("d", "h", "m", "s") if not seconds % UNIT_S[unit])
    return f"{int(seconds / UNIT_S[unit])}{unit}"


def _word(place: Place) -> str:
    if NAME.fullmatch(word := text_of(place)):
        return word
    raise Wrong(
        f"{word!r} is not a name here", "Use letters, digits and underscores, a letter first"
    )


WORD_SCHEMA = {"type": "string", "pattern": f"^{NAME.pattern}$"}
Duration = Annotated[
    float,
    Reads(_duration, {"type": "string", "pattern": f"^(none|{DURATION.pattern})$"}, NEVER_FADES),
]
Word = Annotated[str, Reads(_word, WORD_SCHEMA, "")]
ReadByOf = Annotated[ReadBy, choice(get_args(ReadBy))]


def named(reading: Reading, entries: dict[str, T], places: Section, key: str) -> dict[str, T]:
    """The entries of a mapping whose keys are names; the others are reported."""
    block = places.at(key)
    if not entries:
        return {}
    found = {}
    for name, place in reading.entries(block).items():
        if not NAME.fullmatch(name):
            fix = "Use letters, digits and underscores, a letter first"
            reading.add(place.of_key, f"{name!r} is not a name", fix)
        elif name in RESERVED:
            reading.add(place.of_key, f"{name!r} has a meaning of its own here", "Choose another")
        else:
            found[name] = entries[name]
    return found


def unknown(what: str, name: str, known: Iterable[str]) -> tuple[str, str]:
    """(reason, fix) for a reference to what is not declared."""
    names = list(known)
    return f"there is no {what} {name!r}", suggestion(name, names) if names else f"Declare a {what}"
