"""The keys of a schema.yaml: one definition for the reader and for editors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, ClassVar, TypeAlias, TypeVar

from pydantic import BeforeValidator, ValidationInfo

from models.schema.declaration import NEVER_FADES, Count, Declaration, Field, History, Tables
from models.schema.reader.eligible import Fields, condition_of
from models.schema.reader.events import EventBlock, events_of
from models.schema.reader.fields import FieldBlock
from models.schema.reader.outcome import (
    HistoryBlock,
    SurfaceBlock,
    TablesBlock,
    TaskBlock,
    ValueBlock,
    check_formula,
    tasks_of,
)
from models.schema.reader.state import AffinityBlock, CountBlock, Counts, DerivedBlock, counts_of
from models.schema.reader.words import (
    EMPTY,
    MAX_NAMES,
    ByEvent,
    Duration,
    Named,
    Section,
    Word,
    few,
)
from models.yaml_reader.places import Place, Reading, Wrong
from models.yaml_reader.section import inlined
from models.yaml_reader.values import INT, NAME, NAME_FIX, Many, Reads, Schema

FORMAT = 1
MAX_EVENTS, MAX_SURFACES = 64, 64
LISTS = ("bag", "vector", "numbers")
# What imported tables hold of themselves (models/data/own/wanted.py): fields are columns beside it.
OF_EVENTS = (
    "user_id", "item_id", "event", "time", "time_ms", "value", "surface", "position",
)  # fmt: skip
OF_ITEMS, OF_USERS = ("item_id",), ("user_id",)

T = TypeVar("T")


def _format(place: Place) -> int:
    if place.plain == (INT, str(FORMAT)):
        return FORMAT
    raise Wrong("this format is not known", f"Write `format: {FORMAT}`")


def _surfaces(place: Place, info: ValidationInfo[Reading]) -> dict[str, Place]:
    entries = few(place, info)
    for name, entry in entries.items():
        if not NAME.fullmatch(name):
            info.context.add(entry.of_key, f"{name!r} is not a name", NAME_FIX)
    return entries


BySurface: TypeAlias = Annotated[dict[str, T], BeforeValidator(_surfaces)]


class UserBlock(Section):
    keep: Duration = NEVER_FADES
    """How long after a user's last event what events have left of the user is used."""
    given: Named[FieldBlock] = EMPTY
    """Fields that the owner sets, not events."""
    counts: ByEvent[CountBlock] = EMPTY
    """By event: how often each user did it."""
    sums: ByEvent[CountBlock] = EMPTY
    """By event: the sum of its values."""
    affinities: Named[AffinityBlock] = EMPTY
    """What of the items' values each user's events fell to."""


class ItemBlock(Section):
    keep: Duration = NEVER_FADES
    """How long after the last event that an item counts its counts are used."""
    fields: Named[FieldBlock] = EMPTY
    """What models read of items, and what eligibility and diversity look at."""
    display: Many[Word] = ()
    """Texts that are kept and shown, and read by no model."""
    counts: ByEvent[CountBlock] = EMPTY
    """By event: how often it happened to each item."""
    sums: ByEvent[CountBlock] = EMPTY
    """By event: the sum of its values."""
    eligible: Many[Annotated[Place, Reads(lambda place: place, {"type": "string"})]] = ()
    """Conditions that all must hold for an item to be shown."""

    def check(self) -> None:
        for key in ("display", "eligible"):
            if (count := len(getattr(self, key))) > MAX_NAMES:
                self.wrong(key, f"there are {count:,}", f"Use at most {MAX_NAMES}")
        self.eligible = self.eligible[:MAX_NAMES]


class FileBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("format", "events", "tasks", "value")
    format: Annotated[int, Reads(_format, {"const": FORMAT})] = FORMAT
    """The format of this file: 1."""
    events: Named[EventBlock] = EMPTY
    """What users do with items."""
    user: UserBlock | None = None
    """What is known of a user."""
    context: Named[FieldBlock] = EMPTY
    """What comes with a request."""
    item: ItemBlock | None = None
    """What is known of an item."""
    derived: Named[DerivedBlock] = EMPTY
    """What models read of several of these together."""
    history: HistoryBlock | None = None
    """The events of a user, one by one."""
    tasks: Named[TaskBlock] = EMPTY
    """What models predict of an item that is shown."""
    value: ValueBlock | None = None
    """What lists are ordered by."""
    diversity: Word = ""
    """A category or bag of items by whose values lists are made diverse."""
    surfaces: BySurface[SurfaceBlock] = EMPTY
    """The places where lists are shown."""
    tables: TablesBlock | None = None
    """How embedding tables are stored."""

    def check(self) -> None:
        for key, most in (("events", MAX_EVENTS), ("surfaces", MAX_SURFACES)):
            if (count := len(getattr(self, key))) > most:
                self.wrong(key, f"there are {count} {key}", f"Use at most {most}")
        for key in ("events", "tasks"):
            if self.at(key).is_mapping and self.has(key) and not self.at(key).node.value:
                self.wrong(key, f"there are no {key}", "Declare one at least")

    def declaration(self) -> Declaration:
        """What it declares; whoever asks looks at the problems first, which it adds to."""
        files = self.files
        files.damaged = not self.clean
        user = self.user or UserBlock.absent()
        item = self.item or ItemBlock.absent()
        value = self.value or ValueBlock.absent()
        events = events_of(self.events, files)
        given, context, fields = map(_fields, (user.given, self.context, item.fields))
        for sent in self.context.values():
            if sent.type in LISTS:
                reason = f"a request sends numbers and texts, and a {sent.type} is a list"
                sent.wrong("type", reason, "Use category, number, flag, time or text")
        self._check_display(fields)
        affinities = {
            name: block.affinity(name, events, fields) for name, block in user.affinities.items()
        }
        counts = {
            side: counts_of(block.counts, False, events)
            for side, block in (("user", user), ("item", item))
        }
        sums = {
            side: counts_of(block.sums, True, events)
            for side, block in (("user", user), ("item", item))
        }
        derived = [
            block.derived(name, events, counts, affinities) for name, block in self.derived.items()
        ]
        self._check_names(user.given, self.context, item.fields, self.derived)
        self._check_columns("events", self.context, OF_EVENTS)
        self._check_columns("items", item.fields, OF_ITEMS)
        self._check_columns("users", user.given, OF_USERS)
        for own in self.derived.values():
            if own.surface and not self.surfaces and not files.damaged:
                own.wrong("surface", "there are no surfaces", "Declare them in `surfaces:`")
        tasks = tasks_of(self.tasks, events)
        others = {"user": given, "context": context}
        weights = value.declared(tasks)
        whole = bool(tasks and self.value and self.value.clean)
        for block, key in ((value, "formula"), *((s, "value") for s in self.surfaces.values())):
            check_formula(block, key, tasks, weights, whole)
        return Declaration(
            events=_whole(events.values()),
            user_keep_s=user.keep,
            item_keep_s=item.keep,
            user_given=_whole(given.values()),
            user_counts=_together(counts["user"], sums["user"]),
            affinities=tuple(affinities.values()),
            context=_whole(context.values()),
            item_fields=_whole(fields.values()),
            display=item.display,
            item_counts=_together(counts["item"], sums["item"]),
            eligible=_whole(condition_of(at, fields, others, files) for at in item.eligible),
            derived=_whole(derived),
            history=self.history.history() if self.history else History(),
            tasks=tuple(tasks.values()),
            formula=value.formula,
            weights=tuple(weights.values()),
            diversity=self._diversity(fields),
            surfaces=tuple(s.surface(name, value.formula) for name, s in self.surfaces.items()),
            tables=self.tables.tables() if self.tables else Tables(),
        )

    def _check_display(self, fields: Fields) -> None:
        if not self.item:
            return
        self.item.check_unlike("display")
        for name, place in dict(self.item.listed("display")).items():
            if name in fields:
                fix = "Give the text another name, or delete one"
                self.files.add(place, f"{name} is a field, too", fix)
            elif name in OF_ITEMS:
                self.files.add(place, f"{name} is kept of every item anyway", "Delete it")

    def _check_names(self, *groups: Mapping[str, Section]) -> None:
        """Models know fields by their names alone: no two may share one."""
        first: dict[str, Section] = {}
        for group in groups:
            for name, block in group.items():
                if (other := first.setdefault(name, block)) is not block:
                    reason = f"{other.place.path} has the same name"
                    self.files.add(block.place.of_key, reason, "Give each a name of its own")

    def _check_columns(
        self, table: str, blocks: Mapping[str, FieldBlock], own: Collection[str]
    ) -> None:
        """A field is a column of what is imported, under its name."""
        for name, block in blocks.items():
            if name in own:
                reason = f"{name} is what imported {table} have of themselves"
                self.files.add(block.place.of_key, reason, "Give the field another name")

    def _diversity(self, fields: Fields) -> str:
        name = self.diversity
        if name and name not in fields:
            self.files.unknown(self.at("diversity"), "field of items", name, fields)
        elif (field := fields.get(name)) and field.vocabulary is None:
            self.wrong("diversity", f"{name} has no values", "Name a category or bag of items")
        return name


def _fields(blocks: Mapping[str, FieldBlock]) -> dict[str, Field | None]:
    return {name: block.field(name) for name, block in blocks.items()}


def _whole(found: Iterable[T | None]) -> tuple[T, ...]:
    """Without what is wrong, of which there is nothing in a file without problems."""
    return tuple(each for each in found if each is not None)


def _together(*counts: Counts) -> tuple[Count, ...]:
    return tuple(count for each in counts for kept in each.values() for count in kept or ())


def json_schema() -> Schema:
    """The JSON Schema (draft 7, which editors know best) of a schema.yaml."""
    schema = FileBlock.model_json_schema()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Tandem schema",
    } | inlined(schema, schema["$defs"])
