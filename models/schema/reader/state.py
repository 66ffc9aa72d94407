"""What is kept of users and items: counts, sums and affinities, and what is derived of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from models.schema.declaration import (
    ANY,
    NEVER_FADES,
    Affinity,
    Count,
    Derived,
    Event,
    Field,
    Match,
    Pool,
    Ratio,
    Since,
)
from models.schema.reader.kinds import Duration, ReadByOf, Section, Word, duration_text, unknown
from models.yaml_reader.values import Many, choice

MAX_HALF_LIVES = 4
DERIVATIONS = ("ratio", "since", "match", "pool")


class CountBlock(Section):
    half_lives: Many[Duration] = (NEVER_FADES,)
    """After how long an event counts half: one count is kept for each."""
    models: ReadByOf = "both"
    """Which models read it."""

    def check(self) -> None:
        if self.has("half_lives") and not self.half_lives:
            self.wrong("half_lives", "there is none", "Write [none] for what never fades")
        if len(self.half_lives) > MAX_HALF_LIVES:
            reason = f"there are {len(self.half_lives)} half-lives"
            self.wrong("half_lives", reason, f"Use at most {MAX_HALF_LIVES}")
        seen = set[float]()
        for half_life, place in self.listed("half_lives"):
            if half_life in seen:
                self.files.add(place, "this half-life stands here twice", "Delete one of them")
            seen.add(half_life)

    def counts(self, event: str, of_value: bool) -> Iterator[Count]:
        for half_life_s in self.half_lives:
            yield Count(
                event=event, half_life_s=half_life_s, of_value=of_value, read_by=self.models
            )


def counts_of(
    blocks: Mapping[str, CountBlock], of_value: bool, events: Mapping[str, Event]
) -> list[Count]:
    """The counts, or sums, of a side; events that are not there are reported."""
    found: list[Count] = []
    for name, block in blocks.items():
        if name not in events:
            block.files.add(block.place, *unknown("event", name, events))
        elif of_value and events[name].value is None:
            fix = f"Declare `value:` of the event {name}, or count it"
            block.wrong("", f"{name} has no value to sum", fix)
        else:
            found += block.counts(name, of_value)
    return found


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

    def affinity(
        self, name: str, events: Mapping[str, Event], fields: Mapping[str, Field]
    ) -> Affinity:
        of = self.of or name
        place = "of" if self.has("of") else ""
        field = fields.get(of)
        if field is None:
            self.wrong(place, *unknown("field of items", of, fields))
        elif field.vocabulary is None or field.vocabulary.source != "values":
            fix = "Name a category or bag with `values:` or `values_file:`"
            self.wrong(place, f"{of} has no declared values", fix)
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
        if self.has("ratio") and len(self.ratio) != 2:
            self.wrong("ratio", "this is not a pair of events", "Write [purchase, click]")
        if self.has("pool") and not self.pool:
            self.wrong("pool", "there is no event", "Write [any] for all of the history")

    def derived(
        self,
        name: str,
        events: Mapping[str, Event],
        counts: Mapping[str, list[Count]],
        affinities: Mapping[str, Affinity],
    ) -> Derived | None:
        """`counts` are those of each side; None where something is wrong."""
        before = len(self.files.problems)
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
                self.wrong("since", *unknown("event", self.since, (*events, ANY)))
            made = Since(name=name, event=self.since, read_by=self.models)
        elif self.match:
            if self.match not in affinities:
                self.wrong("match", *unknown("affinity", self.match, affinities))
            made = Match(name=name, affinity=self.match, read_by=self.models)
        elif self.pool:
            kept = {name: event for name, event in events.items() if event.history}
            if self.pool != (ANY,):
                _check_events(self, "pool", kept, "event of the history")
            made = Pool(name=name, events=self.pool, read_by=self.models)
        return made if len(self.files.problems) == before else None

    def _check_ratio(self, events: Mapping[str, Event], counts: list[Count]) -> None:
        kept = {(count.event, count.half_life_s) for count in counts if not count.of_value}
        for event, place in self.listed("ratio"):
            if event and event not in events:
                self.files.add(place, *unknown("event", event, events))
            elif event and (event, self.half_life) not in kept:
                half_life = duration_text(self.half_life)
                reason = f"{self.side} keeps no count of {event} with half-life {half_life}"
                fix = f"Declare it in `{self.side}.counts`, or write `side:` or `half_life:` here"
                self.files.add(place, reason, fix)


def _check_events(block: Any, key: str, events: Mapping[str, Event], what: str = "event") -> None:
    seen = set[str]()
    for name, place in block.listed(key):
        if name and name not in events:
            block.files.add(place, *unknown(what, name, events))
        elif name in seen:
            block.files.add(place, f"{name} stands here twice", "Delete one of them")
        seen.add(name)
    if block.has(key) and block.lists(key) and not seen:
        block.wrong(key, "there is no event", "Name one at least")
