"""The keys of a schema.yaml: one definition for the reader and for editors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from models.schema.declaration import Condition, Declaration, Field, History, Surface, Tables
from models.schema.reader.eligible import condition_of
from models.schema.reader.events import EventBlock, events_of
from models.schema.reader.fields import FieldBlock
from models.schema.reader.kinds import EMPTY, Section, Word, named, unknown
from models.schema.reader.outcome import (
    HistoryBlock,
    SurfaceBlock,
    TablesBlock,
    TaskBlock,
    ValueBlock,
    check_formula,
    tasks_of,
)
from models.schema.reader.state import AffinityBlock, CountBlock, DerivedBlock, counts_of
from models.yaml_reader.places import Place, Wrong
from models.yaml_reader.section import inlined
from models.yaml_reader.values import INT, ByName, Many, Reads, Schema

FORMAT = 1
MAX_EVENTS, MAX_FIELDS, MAX_SURFACES = 64, 256, 64
SURFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _format(place: Place) -> int:
    if place.plain == (INT, str(FORMAT)):
        return FORMAT
    raise Wrong("this format is not known", f"Write `format: {FORMAT}`")


class UserBlock(Section):
    given: ByName[FieldBlock] = EMPTY
    """Fields that the owner sets, not events."""
    counts: ByName[CountBlock] = EMPTY
    """By event: how often each user did it."""
    sums: ByName[CountBlock] = EMPTY
    """By event: the sum of its values."""
    affinities: ByName[AffinityBlock] = EMPTY
    """What of the items' values each user's events fell to."""


class ItemBlock(Section):
    fields: ByName[FieldBlock] = EMPTY
    """What models read of items, and what eligibility and diversity look at."""
    display: Many[Word] = ()
    """Texts that are kept and shown, and read by no model."""
    counts: ByName[CountBlock] = EMPTY
    """By event: how often it happened to each item."""
    sums: ByName[CountBlock] = EMPTY
    """By event: the sum of its values."""
    eligible: Many[Annotated[Place, Reads(lambda place: place, {"type": "string"})]] = ()
    """Conditions that all must hold for an item to be shown."""


class FileBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("format", "events", "tasks", "value")
    format: Annotated[int, Reads(_format, {"const": FORMAT})] = FORMAT
    """Of this file."""
    events: ByName[EventBlock] = EMPTY
    """What users do with items."""
    user: UserBlock | None = None
    """What is known of a user."""
    context: ByName[FieldBlock] = EMPTY
    """What comes with a request."""
    item: ItemBlock | None = None
    """What is known of an item."""
    derived: ByName[DerivedBlock] = EMPTY
    """What models read of several of these together."""
    history: HistoryBlock | None = None
    """The events of a user, one by one."""
    tasks: ByName[TaskBlock] = EMPTY
    """What models predict of an item that is shown."""
    value: ValueBlock | None = None
    """What lists are ordered by."""
    diversity: Word = ""
    """A category or bag of items by whose values lists are made diverse."""
    surfaces: ByName[SurfaceBlock] = EMPTY
    """The places where lists are shown."""
    tables: TablesBlock | None = None
    """How embedding tables are stored."""

    def check(self) -> None:
        for key, most in (("events", MAX_EVENTS), ("surfaces", MAX_SURFACES)):
            if (count := len(getattr(self, key))) > most:
                self.wrong(key, f"there are {count} {key}", f"Use at most {most}")
        for key in ("events", "tasks"):
            if self.has(key) and self.at(key).is_mapping and not getattr(self, key):
                self.wrong(key, f"there are no {key}", "Declare one at least")

    def declaration(self) -> Declaration:
        """What it declares; whoever asks looks at the problems first, which it adds to."""
        files, user, item = self.files, self.user, self.item
        event_blocks = named(files, self.events, self, "events")
        events = events_of(event_blocks, files)
        given = self._fields(user, "given")
        context = self._fields(self, "context")
        fields = self._fields(item, "fields")
        display = tuple(name for name in item.display if name) if item else ()
        self._check_display(fields)
        affinities = {
            name: block.affinity(name, events, fields)
            for name, block in self._named(user, "affinities").items()
        }
        counts = {
            side: [
                *counts_of(block.counts if block else {}, False, events),
                *counts_of(block.sums if block else {}, True, events),
            ]
            for side, block in (("user", user), ("item", item))
        }
        made = {
            name: block.derived(name, events, counts, affinities)
            for name, block in self._named(self, "derived").items()
        }
        self._check_names(given, context, fields, affinities, made)
        tasks = tasks_of(self._named(self, "tasks"), events)
        weights = self.value.declared(tasks) if self.value else {}
        formula = self.value.formula if self.value else ""
        if self.value:
            check_formula(self.value, "formula", tasks, weights)
        return Declaration(
            events=tuple(events.values()),
            user_given=tuple(given.values()),
            user_counts=tuple(counts["user"]),
            affinities=tuple(affinities.values()),
            context=tuple(context.values()),
            item_fields=tuple(fields.values()),
            display=display,
            item_counts=tuple(counts["item"]),
            eligible=tuple(self._conditions(fields, {"user": given, "context": context})),
            derived=tuple(each for each in made.values() if each),
            history=self.history.history() if self.history else History(),
            tasks=tasks,
            formula=formula,
            weights=tuple(weights.values()),
            diversity=self._diversity(fields),
            surfaces=self._surfaces(formula, tasks, weights),
            tables=self.tables.tables() if self.tables else Tables(),
        )

    def _named(self, block: Any, key: str) -> dict[str, Any]:
        return named(self.files, getattr(block, key), block, key) if block else {}

    def _fields(self, block: Any, key: str) -> dict[str, Field]:
        blocks = self._named(block, key)
        if len(blocks) > MAX_FIELDS:
            block.wrong(key, f"there are {len(blocks)} fields", f"Use at most {MAX_FIELDS}")
        return {name: each.field(name) for name, each in blocks.items()}

    def _check_display(self, fields: Mapping[str, Field]) -> None:
        seen = set[str]()
        for name, place in self.item.listed("display") if self.item else ():
            if name in fields:
                reason = f"{name} is a field, too"
                self.files.add(place, reason, "Give the text another name, or delete one")
            elif name in seen:
                self.files.add(place, f"{name} stands here twice", "Delete one of them")
            seen.add(name)

    def _check_names(self, *groups: Mapping[str, Any]) -> None:
        """Models know fields by their names alone: no two may share one."""
        places = [
            (self.user, "given"), (self, "context"), (self.item, "fields"),
            (self.user, "affinities"), (self, "derived"),
        ]  # fmt: skip
        first: dict[str, str] = {}
        for (block, key), names in zip(places, groups, strict=True):
            entries = self.files.entries(block.at(key)) if block and names else {}
            for name in names:
                if name in first and key != "affinities" and first[name] != "affinities":
                    reason = f"there is a field {name} in `{first[name]}`"
                    self.files.add(entries[name].of_key, reason, "Give each a name of its own")
                first.setdefault(name, key)

    def _conditions(
        self, fields: Mapping[str, Field], others: Mapping[str, Mapping[str, Field]]
    ) -> Iterable[Condition]:
        for place in self.item.eligible if self.item else ():
            try:
                yield condition_of(place, fields, others)
            except Wrong as wrong:
                self.files.add(place, wrong.reason, wrong.fix)

    def _diversity(self, fields: Mapping[str, Field]) -> str:
        name = self.diversity
        if name and name not in fields:
            self.wrong("diversity", *unknown("field of items", name, fields))
        elif name and fields[name].vocabulary is None:
            self.wrong("diversity", f"{name} has no values", "Name a category or bag of items")
        return name

    def _surfaces(self, formula: str, tasks: Any, weights: Any) -> tuple[Surface, ...]:
        found = []
        entries = self.files.entries(self.at("surfaces")) if self.surfaces else {}
        for name, block in self.surfaces.items():
            if not SURFACE.fullmatch(name):
                fix = "Use 1 to 64 letters, digits, dots, dashes and underscores"
                self.files.add(entries[name].of_key, f"{name!r} is not a name", fix)
            if block.value:
                check_formula(block, "value", tasks, weights)
            found.append(block.surface(name, formula))
        return tuple(found)


def json_schema() -> Schema:
    """The JSON Schema (draft 7, which editors know best) of a schema.yaml."""
    schema = FileBlock.model_json_schema()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Tandem schema",
    } | inlined(schema, schema["$defs"])
