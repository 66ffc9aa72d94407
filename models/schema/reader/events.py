"""Events: what users do with items."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from models.schema.declaration import LARGEST_ID, SERVING, Amount, Event
from models.schema.reader.fields import FieldBlock
from models.schema.reader.words import (
    EMPTY,
    OF_TRAININGS,
    Named,
    SchemaReading,
    Section,
    Word,
)
from models.yaml_reader.values import Many, Number, Switch, Text, choice, whole

OF_A_PROPERTY = ("category", "number", "flag")


class AmountBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("unit",)
    unit: Text = ""
    """What it is measured in: EUR, s, stars."""
    min: Number = 0.0
    """The smallest that is accepted."""
    max: Number | None = None
    """The largest that is accepted."""
    repeats: Annotated[Any, choice(("add", "replace"))] = "add"
    """Of several in one visit, which is one example: whether they add up, or the last one holds."""

    def check(self) -> None:
        if self.clean and self.max is not None and self.max <= self.min:
            self.wrong("max", f"this is not above the smallest, {self.min:g}", "Write more")

    def amount(self) -> Amount:
        high = math.inf if self.max is None else self.max
        return Amount(
            unit=self.unit,
            low=self.min,
            high=high,
            replaces=self.repeats == "replace",
            line=self.place.line,
        )


class EventBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("id",)
    id: Annotated[int, whole(1, LARGEST_ID)] = 0
    """What stands for it in messages and rows. Never give it to another event."""
    role: Annotated[Any, choice(("impression",))] = ""
    """impression: an item of a list was seen."""
    history: Switch = False
    """Whether it enters the user's history."""
    upgrades: Many[Word] = ()
    """Events that it takes the place of in the history, of the same item: one choice, one entry."""
    value: AmountBlock | None = None
    """The number that comes with it."""
    properties: Named[FieldBlock] = EMPTY
    """What else comes with it, for targeting and metrics."""

    def check(self) -> None:
        if self.role == "impression":
            for key in ("history", "upgrades", "value"):
                if getattr(self, key):
                    self.wrong(key, "an impression is only seen", "Delete this key")
        elif self.upgrades and not self.history and self.clean:
            self.wrong("upgrades", "it is in no history itself", "Add `history: true`")
        self.check_unlike("upgrades")
        for block in self.properties.values():
            if block.type and block.type not in OF_A_PROPERTY:
                fix = f"Use one of {', '.join(OF_A_PROPERTY)}"
                block.wrong("type", f"a property cannot be a {block.type}", fix)

    def event(self, name: str) -> Event | None:
        properties = [block.field(each) for each, block in self.properties.items()]
        if not self.clean:
            return None
        return Event(
            name=name,
            id=self.id,
            impression=self.role == "impression",
            history=self.history,
            upgrades=self.upgrades,
            value=self.value.amount() if self.value else None,
            properties=tuple(each for each in properties if each),
            line=self.place.line,
        )


def events_of(blocks: Mapping[str, EventBlock], reading: SchemaReading) -> dict[str, Event | None]:
    """The events by name; what is wrong between them is reported."""
    events = {name: block.event(name) for name, block in blocks.items()}
    of_id: dict[int, str] = {}
    impression = ""
    for name, block in blocks.items():
        if name in (*SERVING, *OF_TRAININGS):
            reason = f"{name!r} has a meaning of its own in every domain"
            reading.add(block.place.of_key, reason, "Choose another, with an id that none had")
        first = of_id.setdefault(block.id, name)
        if first != name and block.id:
            block.wrong("id", f"event {first} has the same id", "Give it one that no event had")
        if block.role == "impression":
            if impression:
                reason = f"{impression} has this role already"
                block.wrong("role", reason, "One event can be the impression")
            impression = impression or name
        for other, place in block.listed("upgrades"):
            if not other:
                continue
            if other not in events:
                reading.unknown(place, "event", other, events)
            elif other == name or name in _upgraded(other, blocks):
                reading.add(place, f"{name} would upgrade itself", "Delete it")
            elif (event := events[other]) and not event.history:
                fix = "Add `history: true` to it, or delete it here"
                reading.add(place, f"{other} is in no history", fix)
    return events


def _upgraded(name: str, blocks: Mapping[str, EventBlock]) -> Iterator[str]:
    """The events that one takes the place of, and those that they take the place of."""
    found, todo = set[str](), [name]
    while todo:
        block = blocks.get(todo.pop())
        for other in block.upgrades if block else ():
            if other not in found:
                found.add(other)
                todo.append(other)
                yield other
