"""The kinds of values that only a schema.yaml has, and what its parts say of themselves.

What is wrong in itself is reported once. It still has a name, so that references to it are no
mistakes, and is None otherwise, so that nobody draws conclusions from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias, TypeVar, get_args

from pydantic import BeforeValidator, ValidationInfo

from models.schema.declaration import NEVER_FADES, ReadBy
from models.yaml_reader import section
from models.yaml_reader.places import Place, Reading, Wrong, suggestion
from models.yaml_reader.values import STR, Reads, choice, text_of

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
RESERVED = ("any", "now", "user", "item", "context", "none", "and", "or", "not", "has")
OF_TRAININGS = ("user_id", "item_id", "event_time_ms")  # columns that are no names of events
NAME_FIX = "Use at most 64 letters, digits and underscores, a letter first"
DURATION = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d)")
EMPTY: dict[str, Any] = {}  # what a mapping is that is not there
UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MAX_NAMES = 256  # of one mapping

T = TypeVar("T")


class SchemaReading(Reading):
    """One reading of a schema.yaml; `folder` is where the files that it names lie."""

    empty = "Write `format: 1`, `events:`, `tasks:` and `value:`"

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.folder = folder
        self.damaged = False  # whether something was wrong before references are followed

    def unknown(self, place: Place, what: str, name: str, known: Iterable[str]) -> None:
        """Report a reference to what is not declared. In a damaged file what would declare it may
        be what is wrong, if it declares nothing."""
        names = list(known)
        if names:
            self.add(place, f"there is no {what} {name!r}", suggestion(name, names))
        elif not self.damaged:
            self.add(place, f"there is no {what} {name!r}", "Declare it")


class Section(section.Section):
    if TYPE_CHECKING:
        files: SchemaReading

    @classmethod
    def absent(cls) -> Self:
        """What holds where the file has no such section: the defaults. It has no place."""
        return cls.model_construct()  # type: ignore[call-arg, return-value]  # no fields

    def check_unlike(self, key: str, harmless: Any = "") -> None:
        """Report values that stand twice in a list; `harmless` stands for wrong ones."""
        seen = {harmless}
        for value, place in self.listed(key):
            if value in seen and value != harmless:
                self.files.add(place, f"{place.plain[1]!r} stands here twice", "Delete one of them")
            seen.add(value)


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
    raise Wrong(f"{word!r} is not a name", NAME_FIX)


def few(place: Place, info: ValidationInfo[Reading]) -> dict[str, Place]:
    """The values of a mapping; none of too many, through which references would be followed."""
    entries = info.context.entries(place)
    if len(entries) <= MAX_NAMES:
        return entries
    info.context.add(place, f"there are {len(entries):,} names", f"Use at most {MAX_NAMES}")
    return {}


def _named(place: Place, info: ValidationInfo[Reading]) -> dict[str, Place]:
    entries = few(place, info)
    for name, entry in entries.items():
        if not NAME.fullmatch(name):
            info.context.add(entry.of_key, f"{name!r} is not a name", NAME_FIX)
        elif name in RESERVED:
            reason = f"{name!r} has a meaning of its own here"
            info.context.add(entry.of_key, reason, "Choose another")
    return entries


WORD_SCHEMA = {"type": "string", "pattern": f"^{NAME.pattern}$"}
Duration = Annotated[
    float,
    Reads(_duration, {"type": "string", "pattern": f"^(none|{DURATION.pattern})$"}, NEVER_FADES),
]
Word = Annotated[str, Reads(_word, WORD_SCHEMA, "")]
ReadByOf = Annotated[ReadBy, choice(get_args(ReadBy))]
Named: TypeAlias = Annotated[dict[str, T], BeforeValidator(_named)]  # its keys are new names
ByEvent: TypeAlias = Annotated[dict[str, T], BeforeValidator(few)]
