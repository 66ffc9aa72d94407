"""A field: its type, and the keys that each type has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, get_args

from models.schema.declaration import FIELD_TYPES, Field, FieldType, Scale, Source, Vocabulary
from models.schema.reader.words import ReadByOf, Section
from models.yaml_reader.places import Place, Wrong
from models.yaml_reader.values import (
    BOOL,
    STR,
    Many,
    Reads,
    Text,
    choice,
    positive,
    text_of,
    value_of,
    whole,
)

MAX_VALUES = 65_535  # of a declared vocabulary, which rows keep as two bytes
MAX_VALUE_BYTES = 256
MAX_FILE_BYTES = MAX_VALUES * (MAX_VALUE_BYTES + 2)
SOURCES: tuple[str, ...] = ("values", "values_file", "learned", "hashed")
KEYS: Mapping[FieldType, tuple[str, ...]] = {
    "category": (*SOURCES, "default"),
    "bag": (*SOURCES, "slots"),
    "number": ("scale", "period", "buckets", "default"),
    "flag": ("default",),
    "time": ("scale", "buckets"),
    "vector": ("length", "dtype"),
    "text": ("slots", "buckets"),
    "numbers": ("length",),
}
NEEDED: Mapping[FieldType, tuple[str, ...]] = {
    "bag": ("slots",), "vector": ("length",), "numbers": ("length",), "text": ("slots", "buckets"),
}  # fmt: skip
EVERY_KEY = {key for keys in KEYS.values() for key in keys}


def _value_text(place: Place) -> str:
    """One value of a vocabulary, as data hold it."""
    text = text_of(place)
    if text != text.strip():
        raise Wrong(f"{text!r} begins or ends with a space", "Delete the space")
    if len(text.encode()) > MAX_VALUE_BYTES:
        raise Wrong("this value is too long", f"Use at most {MAX_VALUE_BYTES} bytes")
    return text


_SCALAR = Reads(lambda place: place, {"type": ["string", "number", "boolean"]})
Value = Annotated[str, Reads(_value_text, {"type": "string", "minLength": 1}, "")]


class FieldBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("type",)
    type: Annotated[FieldType | None, choice(FIELD_TYPES)] = None
    """category: one of several values; bag: some of them; number; flag: true or false; time: an
    instant, read as its age at the request; vector: given numbers, used as they are; text: read as
    hashed pieces of words; numbers: a list of them."""
    values: Many[Value] = ()
    """Of a category or bag: all its values, for ever in this order; new ones go to the end."""
    values_file: Text = ""
    """Of a category or bag: a file with one value on each line, beside this file."""
    learned: Annotated[int, whole(1, 10_000_000)] = 0
    """Of a category or bag: the so many most frequent values of the training data."""
    hashed: Annotated[int, whole(2, 10_000_000)] = 0
    """Of a category or bag: values share so many rows by their hash."""
    slots: Annotated[int, whole(1, 256)] = 1
    """Of a bag: how many values are kept; of a text: how many pieces."""
    scale: Annotated[Scale, choice(get_args(Scale))] = "linear"
    """How models read a number. log, quantiles: as one of `buckets`; standardised: by mean and
    deviation of the training data; cyclic: by its place in a `period`; linear: as it is. Of a time
    without this key: log."""
    period: Annotated[float, positive(1e12)] = 0.0
    """Of a cyclic number: after how much it is the same again."""
    buckets: Annotated[int, whole(2, 1_000_000)] = 0
    """Into how many a number or an age is divided, 32 by default; of a text: how many hashes there
    are."""
    length: Annotated[int, whole(1, 4_096)] = 1
    """Of a vector or numbers: how many there are."""
    dtype: Annotated[Any, choice(("float16", "float32"))] = "float32"
    """How a vector is stored."""
    default: Annotated[Any, _SCALAR] = None
    """What holds where no value is given; without one it is unknown."""
    models: ReadByOf = "both"
    """Which models read it."""

    def check(self) -> None:
        kind = self.type
        if kind is None:
            return
        for key in sorted(EVERY_KEY.intersection(self.entries) - set(KEYS[kind])):
            self.wrong(key, f"a {kind} has no use for this key", "Delete it")
        for key in NEEDED.get(kind, ()):
            self.need(key, f"a {kind} needs this key")
        if kind in ("category", "bag"):
            self._check_vocabulary(kind)
        if kind in ("number", "time") and self.clean:
            self._check_scale(kind)
        if "default" in KEYS[kind]:
            self.default = self._default(kind)

    def _check_vocabulary(self, kind: str) -> None:
        given = [key for key in SOURCES if self.has(key)]
        if not given:
            reason = f"a {kind} needs its values"
            fix = "Add `values:`, `values_file:`, `learned: 1000` or `hashed: 1000`"
            self.wrong("", reason, fix)
        for key in given[1:]:
            self.wrong(key, f"its values come from `{given[0]}`", "Keep one of the two")
        if self.lists("values"):
            self.check_unlike("values")
            self._check_number("values")
        elif given == ["values_file"] and self.values_file:
            self._read_values()

    def _check_number(self, key: str) -> None:
        if not self.values:
            self.wrong(key, "there is no value", "Write at least one")
        elif len(self.values) > MAX_VALUES:
            reason = f"there are {len(self.values):,} values"
            self.wrong(key, reason, f"Use at most {MAX_VALUES:,}, or `learned:` or `hashed:`")

    def _read_values(self) -> None:
        """The values in the file; what is wrong with it is reported where it is named."""
        name, fix = self.values_file, "Write one value on each line of a UTF-8 file beside this one"
        if self.files.folder is None:
            reason = "there is no folder to find it in"
            self.wrong("values_file", reason, "Write `values:` instead")
            return
        try:
            lines = _lines(self.files.folder, name)
        except (OSError, ValueError) as error:
            self.wrong("values_file", f"{name} cannot be read ({error})", fix)
            return
        seen = dict[str, int]()
        for number, line in enumerate(lines, 1):
            if not line or line != line.strip() or len(line.encode()) > MAX_VALUE_BYTES:
                self.wrong("values_file", f"line {number} of {name} is no value: {line!r}", fix)
                return
            if (first := seen.setdefault(line, number)) != number:
                reason = f"lines {first} and {number} of {name} are both {line!r}"
                self.wrong("values_file", reason, "Delete one of them")
                return
        self.values = tuple(lines)
        self._check_number("values_file")

    def _check_scale(self, kind: FieldType) -> None:
        if kind == "time" and self.scale == "cyclic":
            self.wrong("scale", "an age is not cyclic", "Declare a number with the hour or weekday")
            return
        for key, scales in (("period", ("cyclic",)), ("buckets", ("log", "quantiles"))):
            if key in KEYS[kind] and self._scaled not in scales and self.has(key):
                reason = f"the scale {self._scaled} has no use for this key"
                self.wrong(key, reason, f"Delete it, or write `scale: {scales[0]}`")
        if self.scale == "cyclic":
            self.need("period", "a cyclic number needs this key")

    @property
    def _scaled(self) -> Scale:
        """Seconds as they are would drown whatever else a model reads."""
        return "log" if self.type == "time" and not self.has("scale") else self.scale

    def field(self, name: str) -> Field | None:
        """What it declares; None where it is wrong."""
        if not self.clean or self.type is None:
            return None
        return Field(
            name=name,
            type=self.type,
            vocabulary=self._vocabulary() if self.type in ("category", "bag") else None,
            slots=self.slots,
            buckets=self.buckets or (32 if self._scaled in ("log", "quantiles") else 0),
            scale=self._scaled,
            period=self.period,
            length=self.length,
            dtype=self.dtype,
            default=self.default,
            read_by=self.models,
            line=self.place.line,
        )

    def _vocabulary(self) -> Vocabulary:
        if self.values:
            return Vocabulary(source="values", size=len(self.values), values=self.values)
        source: Source = "learned" if self.learned else "hashed"
        return Vocabulary(source=source, size=self.learned or self.hashed)

    def _default(self, kind: str) -> str | float | bool | None:
        if not self.has("default"):
            return {"number": 0.0, "flag": False}.get(kind)
        place: Place = self.at("default")
        tag, text = place.plain
        reason, fix = f"{text!r} is no {kind}", "Write `true` or `false`"
        if kind == "flag":
            if tag == BOOL and text in ("true", "false"):
                return text == "true"
        elif kind == "number":
            if type(value := value_of(place)) in (int, float) and abs(value) < 1e38:
                return float(value)
            fix = "Write a finite number"
        else:
            if tag == STR and text and (text in self.values or not (self.values and self.clean)):
                return text
            reason = f"{text!r} is not one of the values"
            fix = "Write one of its values, in quotes if YAML takes it for something else"
        self.files.add(place, reason, fix)
        return None


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of a file of values, without empty ones at the end. OSError, ValueError."""
    path = folder / name
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError("it lies outside the folder")
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("there is no file of this name")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES:,} bytes")
    lines = path.read_text("utf-8-sig").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    return lines
