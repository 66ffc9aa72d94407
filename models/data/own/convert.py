"""From the values of a file to those of a table: one column at a time, of all formats alike.

A value that cannot be what its column holds is a fault, for which its row is refused. One that can
be used in part is noted: a category that is not declared counts as missing, and a bag keeps its
first `slots` values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from models.data.own.cells import FRACTION, NESTED, SWITCH, Cells, without
from models.data.own.times import Fault, event_faults, field_faults, instants
from models.data.own.wanted import Kind, Wanted
from models.schema.declaration import MAX_ID_BYTES, Event
from models.schema.stored import MOST

MAX_PLACE = 100_000  # no list is seen further down: a larger number is of another column
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")

MISSING = "is missing"
A_FRACTION = "is a number with a decimal point: write it as a text or a whole number"
A_SWITCH = "is true or false, expected a text or a whole number"
A_LIST = "is a list or an object, expected a single value"


@dataclass(frozen=True)
class Reading:
    """What values are read with."""

    now_ms: int
    events: Mapping[str, Event]
    timezone: str | None = None  # of local times
    separator: str = "|"  # of the values of a list in one text


@dataclass(frozen=True)
class Note:
    """Something about values that are used in part: a mask of the rows, and what each showed."""

    text: str
    mask: pl.Series
    shown: pl.Series


@dataclass(frozen=True)
class Converted:
    """A column of the table. Null: missing, or at fault."""

    values: pl.Series
    faults: list[Fault]
    notes: list[Note] = field(default_factory=list)


def convert(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    """A column of the table from that of a file, value by value."""
    made = _CONVERTERS[wanted.kind](wanted, cells, reading)
    faults = made.faults
    if wanted.required:
        faults = [(MISSING, cells.values.is_null()), *faults]
    return Converted(made.values.cast(wanted.dtype).alias(wanted.column), faults, made.notes)


def of_events(value: Converted, events: pl.Series, reading: Reading) -> Converted:
    """The values of events, with what their events say of them as further faults: an event has a
    value only if it declares one, and within its bounds."""
    amounts = {name: event.value for name, event in reading.events.items() if event.value}
    given = value.values.is_not_null()
    has_none = given & ~_true(events.is_in(list(amounts))) & _true(events.is_in(reading.events))
    faults = [*value.faults, ("is given, and its event has no value by schema.yaml", has_none)]
    for name, amount in amounts.items():
        inside = value.values.is_between(amount.low, amount.high)
        outside = given & _true(events == name) & ~_true(inside)
        why = f"is not {amount.low:g} to {amount.high:g} {amount.unit}, as {name} declares it"
        faults.append((why, outside))
    return Converted(value.values, faults, value.notes)


def _of_kind(cells: Cells, *refused: tuple[str, int]) -> list[Fault]:
    return [
        (why, mask) for why, kind in refused if (mask := cells.are(kind)) is not None and mask.any()
    ]


def _id(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    texts = cells.values
    faults = _of_kind(cells, (A_FRACTION, FRACTION), (A_SWITCH, SWITCH), (A_LIST, NESTED))
    blank = _true(texts.str.strip_chars() == "")
    long = _true(texts.str.len_bytes() > MAX_ID_BYTES)
    return Converted(
        texts,
        [*faults, ("is blank", blank), (f"has more than {MAX_ID_BYTES} bytes", long)],
    )


def _event(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    names = cells.values.str.strip_chars()
    unknown = ~names.is_in(list(reading.events)) & names.is_not_null()
    why = f"is no event of schema.yaml: expected {', '.join(reading.events)}"
    return Converted(names, [(why, unknown)])


def _event_time(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    ms, faults = instants(cells.values, reading.timezone)
    return Converted(ms, [*faults, *event_faults(ms, reading.now_ms)])


def _time(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    ms, faults = instants(cells.values, reading.timezone)
    return Converted(ms, [*faults, *field_faults(ms)])


def _number(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    texts = _stripped(cells.values)
    numbers = texts.cast(pl.Float64, strict=False)
    bad = texts.is_not_null() & ~_true(numbers.abs() < MOST["float32"])
    return Converted(numbers + 0.0, [("is no finite number", bad)])  # -0.0 is 0.0


def _position(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    texts = _stripped(cells.values)
    # Whole numbers with gaps are often written as fractions: 3.0.
    places = texts.cast(pl.Float64, strict=False)
    fits = places.is_between(1, MAX_PLACE) & (places == places.floor())
    why = f"is no place in a list: expected a whole number from 1 to {MAX_PLACE:,}"
    return Converted(without(places, ~_true(fits)), [(why, texts.is_not_null() & ~_true(fits))])


def _flag(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    texts = _stripped(cells.values).str.to_lowercase()
    yes, no = _true(texts.is_in(TRUE)), _true(texts.is_in(FALSE))
    flags = yes.zip_with(yes | no, pl.Series([None], dtype=pl.Boolean))
    why = f"is no flag: expected {', '.join((*TRUE, *FALSE))}"
    return Converted(flags, [(why, texts.is_not_null() & flags.is_null())])


def _text(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    return Converted(cells.values, _of_kind(cells, (A_LIST, NESTED)))


def _category(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    texts = _stripped(cells.values)
    faults = _of_kind(cells, (A_FRACTION, FRACTION), (A_LIST, NESTED))
    notes = []
    if (known := _declared(wanted)) is not None:
        unknown = texts.is_not_null() & ~_true(texts.is_in(known.implode()))
        notes.append(Note("not declared, counts as missing", unknown, texts))
        texts = without(texts, unknown)
    return Converted(texts, faults, notes)


def _declared(wanted: Wanted) -> pl.Series | None:
    """The values that the schema.yaml lists; None where it does not."""
    vocabulary = wanted.field.vocabulary if wanted.field else None
    if vocabulary is None or vocabulary.source != "values":
        return None
    return pl.Series(vocabulary.values, dtype=pl.String)


def _bag(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    assert wanted.field is not None
    bags = cells.values
    if bags.dtype == pl.String:
        bags = bags.str.split(reading.separator)
    value = pl.element()
    bags = bags.list.eval(value.str.strip_chars()).list.eval(value.filter(value != ""))
    faults = _of_kind(cells, (A_FRACTION, FRACTION), (A_LIST, NESTED))
    notes = []
    if (known := _declared(wanted)) is not None:
        strange = bags.list.eval(value.filter(~value.is_in(known.implode())))
        mask = _true(strange.list.len() > 0)
        notes.append(Note("values that are not declared, left out", mask, strange.list.first()))
        if mask.any():
            bags = bags.list.eval(value.filter(value.is_in(known.implode())))
    slots = wanted.field.slots
    long = _true(bags.list.len() > slots)
    text = f"more values than its {slots} slots, the first {slots} kept"
    notes.append(Note(text, long, bags.list.get(slots, null_on_oob=True)))
    bags = bags.list.head(slots)
    return Converted(without(bags, _true(bags.list.len() == 0)), faults, notes)


def _vector(wanted: Wanted, cells: Cells, reading: Reading) -> Converted:
    assert wanted.field is not None
    lists, length = cells.values, wanted.field.length
    if lists.dtype == pl.String:
        lists = _numbers(lists, reading.separator)
    most = MOST[wanted.field.dtype]
    faults = _of_kind(cells, (f"is no list of {length} numbers", NESTED))
    if faults:  # those are shown as what they are; others hold no numbers for another reason
        lists = without(lists, faults[0][1])
    fine = lists.list.eval(_finite(pl.element(), most)).list.all()
    return Converted(
        lists,
        [
            *faults,
            (f"has not the {length} numbers declared", _true(lists.list.len() != length)),
            ("holds something that is no finite number", ~fine.fill_null(True)),
        ],
    )


def _finite(value: pl.Expr, most: float) -> pl.Expr:
    return (value.abs() <= most).fill_null(False)  # NaN is above all numbers


def _numbers(texts: pl.Series, separator: str) -> pl.Series:
    """Lists of float64 in one text each, as JSON has them or with the separator."""
    texts = _stripped(texts)
    json = _true(texts.str.starts_with("["))
    parts = texts.str.split(separator)
    if json.any():
        inner = texts.str.strip_prefix("[").str.strip_suffix("]")
        parts = inner.str.split(",").zip_with(json, parts)
    value = pl.element()
    return parts.list.eval(value.str.strip_chars().cast(pl.Float64, strict=False))


def _stripped(texts: pl.Series) -> pl.Series:
    """Without blanks around them; a blank text is missing."""
    texts = texts.str.strip_chars()
    return without(texts, texts == "")


def _true(mask: pl.Series) -> pl.Series:
    """A mask without nulls."""
    return mask.fill_null(False)


_CONVERTERS: Mapping[Kind, Callable[[Wanted, Cells, Reading], Converted]] = {
    "id": _id,
    "event": _event,
    "event time": _event_time,
    "value": _number,
    "position": _position,
    "category": _category,
    "bag": _bag,
    "number": _number,
    "flag": _flag,
    "time": _time,
    "vector": _vector,
    "numbers": _vector,
    "text": _text,
}
