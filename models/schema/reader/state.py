"""What is kept of users and items: counts, sums and affinities, and what is derived of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from models.schema.declaration import (
    ANY,
    NEVER_FADES,
    Affinity,
    Count,
    Derived,
    Event,
    Field,
    Match,
    OnSurface,
    Pool,
    Position,
    Ratio,
    Since,
)
from models.schema.reader.words import Duration, ReadByOf, Section, Word, duration_text
from models.yaml_reader.values import Many, Switch, choice, whole

MAX_HALF_LIVES = 4
DERIVATIONS = ("ratio", "since", "match", "pool", "surface", "position")

Events: TypeAlias = Mapping[str, Event | None]  # None: wrong itself, as of the others
Counts: TypeAlias = dict[str, list[Count] | None]  # by event


class CountBlock(Section):
    half_lives: Many[Duration] = (NEVER_FADES,)
    """After how long an event counts half: one count is kept for each."""
    models: ReadByOf = "both"
    """Which models read it."""

    def check(self) -> None:
        if self.lists("half_lives") and not self.half_lives:
            self.wrong("half_lives", "there is none", "Write [none] for what never fades")
        if len(self.half_lives) > MAX_HALF_LIVES:
            reason = f"there are {len(self.half_lives)} half-lives"
            self.wrong("half_lives", reason, f"Use at most {MAX_HALF_LIVES}")
        if self.clean:
            self.check_unlike("half_lives", None)

    def counts(self, event: str, of_value: bool) -> list[Count] | None:
        if not self.clean:
            return None
        return [
            Count(event=event, half_life_s=half_life_s, of_value=of_value, read_by=self.models)
            for half_life_s in self.half_lives
        ]


def counts_of(blocks: Mapping[str, CountBlock], of_value: bool, events: Events) -> Counts:
    """The counts, or sums, of a side; events that are not there are reported."""
    for name, block in blocks.items():
        place = block.place.of_key
        if name not in events:
            block.files.unknown(place, "event", name, events)
        elif of_value and (event := events[name]) and event.value is None:
            fix = f"Declare `value:` of the event {name}, or count it"
            block.files.add(place, f"{name} has no value to sum", fix)
    return {name: block.counts(name, of_value) for name, block in blocks.items()}


class AffinityBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("by",)
    of: Word = ""
    """A category or bag of items with declared values; default: the affinity's name."""
    by: Many[Word] = ()
    """The events that count."""
    half_life: Duration = NEVER_FADES
    """After how long an event counts half."""
    models: ReadByOf = "both"
    """Which models read it."""

    def affinity(self, name: str, events: Events, fields: Mapping[str, Field | None]) -> Affinity:
        named = self.has("of") or not self.clean  # `off: brand` is no affinity of its name
        of = self.of if named else name
        place = self.at("of") if self.has("of") else self.place.of_key
        if of and of not in fields:
            self.files.unknown(place, "field of items", of, fields)
        elif (field := fields.get(of)) and not (field.vocabulary and field.vocabulary.values):
            fix = "Name a category or bag with `values:` or `values_file:`"
            self.files.add(place, f"{of} has no declared values", fix)
        _check_events(self, "by", events)
        return Affinity(
            name=name, field=of, by=self.by, half_life_s=self.half_life, read_by=self.models
        )


class DerivedBlock(Section):
    ratio: Many[Word] = ()
    """[a, b]: how often a happened for each b."""
    side: Annotated[Literal["user", "item"], choice(("user", "item"))] = "user"
    """Of a ratio: whose counts they are."""
    half_life: Duration = NEVER_FADES
    """Of a ratio: of which of the counts."""
    since: Word = ""
    """An event, or any: seconds since the user's newest."""
    match: Word = ""
    """An affinity: how much of it falls to the candidate."""
    pool: Many[Word] = ()
    """Events, or [any]: these items of the history, as one."""
    surface: Switch = False
    """true: the surface that the list is for."""
    position: Annotated[int, whole(1, 1_000)] = 0
    """How many places of a list are told apart: where an item was seen. Learned from; when a list
    is made, all candidates have the same one."""
    models: ReadByOf = "both"
    """Which models read it."""

    def check(self) -> None:
        given = [key for key in DERIVATIONS if self.has(key)]
        if not given and self.place.is_mapping:
            self.wrong("", "nothing says what it is", f"Add one of {', '.join(DERIVATIONS)}")
        for key in given[1:]:
            self.wrong(key, f"it is a {given[0]} already", "Give each a name of its own")
        for key in ("side", "half_life"):
            if given and given[0] != "ratio" and self.has(key):
                self.wrong(key, f"a {given[0]} has no use for this key", "Delete it")
        if self.lists("ratio") and len(self.ratio) != 2:
            self.wrong("ratio", "this is not a pair of events", "Write [purchase, click]")
        if self.lists("pool") and not self.pool:
            self.wrong("pool", "there is no event", "Write [any] for all of the history")
        if ANY in self.pool and len(self.pool) > 1:
            self.wrong("pool", "any is all of them", "Write [any] alone, or events")
        if given == ["surface"] and not self.surface and self.clean:
            self.wrong("surface", "nothing would be read", "Write `surface: true`, or delete it")
        if self.position and self.models == "retrieval":
            self.wrong("models", "retrieval makes no list", "Write `models: ranking`")

    def derived(
        self,
        name: str,
        events: Events,
        counts: Mapping[str, Counts],
        affinities: Collection[str],
    ) -> Derived | None:
        """`counts` are those of each side; None where nothing says what it is."""
        made: Derived | None = None
        if self.ratio:
            self._check_ratio(events, counts[self.side])
            above, below = (*self.ratio, "", "")[:2]
            made = Ratio(
                name=name, above=above, below=below, side=self.side,
                half_life_s=self.half_life, read_by=self.models,
            )  # fmt: skip
        elif self.since:
            if self.since != ANY and self.since not in events:
                self.files.unknown(self.at("since"), "event", self.since, events)
            made = Since(name=name, event=self.since, read_by=self.models)
        elif self.match:
            if self.match not in affinities:
                self.files.unknown(self.at("match"), "affinity", self.match, affinities)
            made = Match(name=name, affinity=self.match, read_by=self.models)
        elif self.pool:
            kept = [name for name, event in events.items() if event is None or event.history]
            if ANY not in self.pool:
                _check_events(self, "pool", kept, "event of the history")
            made = Pool(name=name, events=self.pool, read_by=self.models)
        elif self.surface:
            made = OnSurface(name=name, read_by=self.models)
        elif self.position:
            if not self.files.damaged and not any(e and e.impression for e in events.values()):
                fix = "Give an event `role: impression`"
                self.wrong("position", "there is no event of seeing an item", fix)
            made = Position(name=name, places=self.position, read_by=self.models)
        return made

    def _check_ratio(self, events: Events, counts: Counts) -> None:
        self.check_unlike("ratio")
        for event, place in self.listed("ratio"):
            if not event:
                continue
            kept = counts.get(event, [])
            if event not in events:
                self.files.unknown(place, "event", event, events)
            elif not self.clean or kept is None or (self.files.damaged and not counts):
                continue  # what would keep it is wrong itself
            elif self.half_life not in [count.half_life_s for count in kept]:
                half_life = duration_text(self.half_life)
                reason = f"{self.side} keeps no count of {event} with half-life {half_life}"
                fix = f"Declare it in `{self.side}.counts`, or write `side:` or `half_life:` here"
                self.files.add(place, reason, fix)


def _check_events(block: Section, key: str, events: Collection[str], what: str = "event") -> None:
    """Report what is wrong with a list of events."""
    block.check_unlike(key)
    for name, place in block.listed(key):
        if name and name not in events:
            block.files.unknown(place, what, name, events)
    if block.lists(key) and not getattr(block, key):
        block.wrong(key, "there is no event", "Name one at least")
