"""What a model reads of each row, and, of a declared domain, where each of its inputs comes from.

A `FeatureSchema` is all that a network knows of its inputs: their kinds, sizes and sides. Inputs of
the user's side are the same for all candidates of a request, so their share of a network is
computed once (`models/ranking/network.py`); those of the item's are known before any request. A
row's own are of the moment, or of both.

`reads_of` compiles a declaration: `Reads` says of each input which columns of which rows it is made
of and how. It is published with the model, whose artifact is checked against it alone: a schema may
declare more, and what it declares of these columns must mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import TypeAdapter

from models.schema.declaration import (
    ANY,
    Affinity,
    Count,
    Declaration,
    Field,
    Match,
    OnSurface,
    Pool,
    Position,
    Ratio,
    ReadBy,
    Since,
    Tables,
    Task,
)
from models.schema.groups import FeatureGroup
from models.schema.layout import (
    SURFACE,
    Layout,
    affinity_column,
    column_of,
    count_column,
    digest,
    last_column,
    meaning_of,
)

Kind = Literal["id", "number", "bag", "weights", "vector", "history", "pool"]
KINDS: tuple[Kind, ...] = ("id", "number", "bag", "weights", "vector", "pool")  # order of fields
Side = Literal["user", "item", "row"]
SIDES: tuple[Side, ...] = ("user", "item", "row")  # in which fields come
Part = Literal["retrieval", "ranking"]
How = Literal[
    "key", "value", "count", "ratio", "since", "shares", "match", "history", "pool", "position"
]

ITEM = "item"  # the input that is the item itself
HISTORY = "(history)"  # no declared name is in parentheses
COUNT_BUCKETS, SHARE_BUCKETS, TIME_BUCKETS = 24, 20, 32


@dataclass(frozen=True, kw_only=True)
class Input:
    """One field of a network, an embedding of its own.

    id       one of 0..size-1, 0 unknown
    number   a number times a vector
    bag      some of 0..size-1, 0 padding: the mean (or sum) of their embeddings
    weights  `size` numbers: the sum of the embeddings of 0..size-1, so weighted (0 has none)
    vector   `size` numbers, through a linear map
    history  earlier values of the input `table`, newest first, 0 padding, of so many `types`
    pool     the mean of the history `of`: of the entries of some types (none named: of all)

    `table` names the input whose embeddings it shares.
    """

    name: str
    kind: Kind = "id"
    side: Side = "row"
    size: int = 0
    table: str = ""
    types: int = 1
    of: str = ""
    only: tuple[int, ...] = ()
    pooling: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True)
class FeatureSchema:
    """What a network reads, and the tasks to predict."""

    inputs: tuple[Input, ...]
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [each.name for each in self.inputs]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"features {twice} are declared twice: give each a name of its own")
        known = {each.name: each for each in self.inputs}
        for each in self.inputs:
            if each.table and (each.table not in known or known[each.table].table):
                raise ValueError(
                    f"{each.kind} {each.name!r} is of {each.table!r}, which is no field"
                )
            if each.kind == "pool" and (each.of not in known or known[each.of].kind != "history"):
                raise ValueError(f"pool {each.name!r} is of {each.of!r}, no history")

    def of(self, kind: Kind, side: Side | None = None) -> tuple[Input, ...]:
        """The inputs of a kind, of one side or of both."""
        return self._sorted.get((kind, side), ())  # asked for each batch

    @cached_property
    def _sorted(self) -> dict[tuple[Kind, Side | None], tuple[Input, ...]]:
        found: dict[tuple[Kind, Side | None], tuple[Input, ...]] = {}
        for each in self.inputs:
            for side in (each.side, None):
                key = each.kind, side
                found[key] = (*found.get(key, ()), each)
        return found

    @cached_property
    def histories(self) -> tuple[Input, ...]:
        return self.of("history")

    def fields(self, side: Side | None = None) -> int:
        """How many embeddings a row has, of one side or of both."""
        return sum(len(self.of(kind, side)) for kind in KINDS)


@dataclass(frozen=True, kw_only=True)
class Source:
    """How an input is made of columns of rows.

    key     the item's row
    value   a declared field, as its `type`, `scale` and `vocabulary` say
    count   a count or sum, faded to the request: its logarithm in buckets
    ratio   the first of two counts over the second, in buckets
    since   seconds from a time to the request: their logarithm in buckets
    shares  an affinity, divided by its sum
    match   how much of an affinity's shares (`shares`) falls to the item's values (`columns`)
    position  the place at which the item was seen; 0 where it is not known
    """

    input: Input
    how: How
    group: str = ""  # of the rows
    columns: tuple[str, ...] = ()
    field: str = ""  # declared, whose values the ids stand for
    form: tuple[tuple[str, tuple[int, ...]], ...] = ()  # dtype and shape of each column
    type: str = ""
    scale: str = "linear"
    buckets: int = 0
    period: float = 0.0
    vocabulary: str = ""  # where the ids come from: values, learned, hashed
    meaning: str = ""  # of declared values: the digest of those that the model knows
    half_life_s: float | None = None  # of a count
    shares: str = ""  # of a match: the input


@dataclass(frozen=True, kw_only=True)
class Reads:
    """All that a model reads of a declared domain."""

    sources: tuple[Source, ...]
    history: int  # so many of the newest entries
    events: tuple[int, ...]  # ids of the history's events, in the order of their types
    tasks: tuple[Task, ...]
    tables: Tables = field(default_factory=Tables)

    @cached_property
    def schema(self) -> FeatureSchema:
        return FeatureSchema(
            tuple(source.input for source in self.sources), tuple(t.name for t in self.tasks)
        )

    @cached_property
    def counters(self) -> tuple[str, ...]:
        """The columns of items' counters, in the order in which the model is given them."""
        found = (c for s in self.sources if s.group == "counters" for c in s.columns)
        return tuple(dict.fromkeys(found))

    def only(self, *how: How) -> Reads:
        """Less: the sources of these kinds."""
        return replace(self, sources=tuple(s for s in self.sources if s.how in how))

    def document(self) -> dict[str, Any]:
        """As JSON-ready data."""
        found: dict[str, Any] = _ADAPTER.dump_python(self, mode="json", exclude_defaults=True)
        return found

    @classmethod
    def of(cls, document: Any) -> Reads:
        """From `document`; ValueError if it is none."""
        return _ADAPTER.validate_python(document)

    def unfit(self, declaration: Declaration, layout: Layout) -> str:
        """What of a domain is not as the model reads it, in words; "" if nothing. Items' own fields
        are not looked at: they travel with the model."""
        for source in self.sources:
            if source.group in ("", "item"):
                continue
            group: FeatureGroup = getattr(layout, source.group)
            there = {f.name: (f.dtype, f.shape) for f in group.features}
            for column, (dtype, shape) in zip(source.columns, source.form, strict=True):
                found = there.get(column)
                grown = source.how == "shares" and found and found[1] >= shape
                if found is None or found[0] != dtype or not (found[1] == shape or grown):
                    return f"it reads {column} of {source.group}"
            if source.meaning and source.meaning != _meaning(source, declaration):
                return f"it reads {source.input.name} by other values"
        kept = tuple(event.id for event in declaration.events if event.history)
        if not set(self.events) <= set(kept):
            return "it reads histories of other events"
        return ""


_ADAPTER = TypeAdapter(Reads)


def reads_of(
    declaration: Declaration, layout: Layout, part: Part, sizes: Mapping[str, int]
) -> Reads:
    """What models of a part read. `sizes`: of the input `item` and of learned vocabularies, by
    input, how many ids there are with 0."""
    found = _Reading(declaration, layout, part, sizes)
    history = declaration.history.models_read
    return Reads(
        sources=tuple(found.sources()),
        history=history,
        events=found.events,
        tasks=declaration.tasks,
        tables=declaration.tables,
    )


@dataclass(frozen=True)
class _Reading:
    declaration: Declaration
    layout: Layout
    part: Part
    sizes: Mapping[str, int]

    @cached_property
    def events(self) -> tuple[int, ...]:
        return tuple(event.id for event in self.declaration.events if event.history)

    def sources(self) -> Iterator[Source]:
        """In the order in which `models/declared_inputs.py` makes them."""
        yield from self.user()
        yield Source(input=Input(name=ITEM, side="item", size=self.sizes[ITEM]), how="key")
        yield from self.item()

    def reads(self, read_by: ReadBy) -> bool:
        return read_by in ("both", self.part)

    def user(self) -> Iterator[Source]:
        declared = self.declaration
        yield from self.counts("user", declared.user_counts)
        yield from self.ratios("user")
        for since in self.derived(Since):
            column = "last_event_ms"
            if since.event != ANY:
                column = last_column(declared.event[since.event])
            one = Input(name=since.name, side="user", size=TIME_BUCKETS)
            yield self.of_rows(one, "since", "profile", column)
        for given in declared.user_given:
            if self.reads(given.read_by):
                yield self.value(given, "given", "user")
        for own in declared.context:
            if self.reads(own.read_by):
                yield self.value(own, "context", "user")
        for surface in self.derived(OnSurface):
            names = tuple(each.name for each in declared.surfaces)
            one = Input(name=surface.name, side="user", size=1 + len(names))
            yield replace(
                self.of_rows(one, "value", "context", SURFACE),
                type="category", vocabulary="values", meaning=f"{digest(names):016x}",
            )  # fmt: skip
        matched = {match.affinity for match in self.derived(Match) if self.part == "ranking"}
        for affinity in declared.affinities:
            if affinity.name in matched or self.reads(affinity.read_by):
                yield self.shares(affinity)
        if self.events:
            yield Source(
                input=Input(
                    name=HISTORY, kind="history", side="user", size=self.sizes[ITEM], table=ITEM,
                    types=len(self.events),
                ),
                how="history",
            )  # fmt: skip
            for pool in self.derived(Pool):
                ids = (declared.event[e].id for e in pool.events if e != ANY)
                only = tuple(self.events.index(each) for each in ids)
                yield Source(
                    input=Input(name=pool.name, kind="pool", side="user", of=HISTORY, only=only),
                    how="pool",
                )

    def item(self) -> Iterator[Source]:
        declared = self.declaration
        # Times come last, as they become ages with each request. Retrieval makes vectors of items
        # once, so that nothing of a request can be in them.
        for own in sorted(declared.item_fields, key=lambda each: each.type == "time"):
            if self.reads(own.read_by) and (own.type != "time" or self.part == "ranking"):
                yield self.value(own, "item", "row" if own.type == "time" else "item")
        if self.part == "retrieval":
            return
        yield from self.counts("item", declared.item_counts)
        yield from self.ratios("item")
        for position in self.derived(Position):
            one = Input(name=position.name, size=1 + position.places)
            yield Source(input=one, how="position")
        for match in self.derived(Match):
            affinity = next(a for a in declared.affinities if a.name == match.affinity)
            yield Source(
                input=Input(name=match.name, kind="number"),
                how="match",
                group="item",
                columns=(affinity.field,),
                shares=_named("user", affinity.name),
            )

    def derived(self, kind: type[Any]) -> list[Any]:
        return [
            d for d in self.declaration.derived if isinstance(d, kind) and self.reads(d.read_by)
        ]

    def counts(self, side: Literal["user", "item"], counts: tuple[Count, ...]) -> Iterator[Source]:
        for count in counts:
            if self.reads(count.read_by):
                column = count_column(self.declaration, count)
                one = Input(name=_named(side, f"({column})"), side=_SIDE[side], size=COUNT_BUCKETS)
                yield self.of_rows(
                    one, "count", _GROUP[side], column, half_life_s=_finite(count.half_life_s)
                )

    def ratios(self, side: Literal["user", "item"]) -> Iterator[Source]:
        for ratio in self.derived(Ratio):
            if ratio.side == side:
                half_life_s = ratio.half_life_s
                columns = (
                    count_column(self.declaration, Count(event=event, half_life_s=half_life_s))
                    for event in (ratio.above, ratio.below)
                )
                one = Input(name=ratio.name, side=_SIDE[side], size=SHARE_BUCKETS)
                yield self.of_rows(
                    one, "ratio", _GROUP[side], *columns, half_life_s=_finite(half_life_s)
                )

    def of_rows(
        self, one: Input, how: How, group: str, *columns: str, half_life_s: float | None = None
    ) -> Source:
        there = {f.name: (f.dtype, f.shape) for f in getattr(self.layout, group).features}
        form = tuple(there[column] for column in columns)
        return Source(
            input=one, how=how, group=group, columns=columns, form=form, half_life_s=half_life_s
        )

    def shares(self, affinity: Affinity) -> Source:
        field = self.declaration.item_field[affinity.field]
        assert field.vocabulary is not None
        source = self.of_rows(
            Input(
                name=_named("user", affinity.name),
                kind="weights",
                side="user",
                size=1 + field.vocabulary.size,
                table=_named("item", field.name) if self.reads(field.read_by) else "",
            ),
            "shares",
            "profile",
            affinity_column(self.declaration, affinity),
        )
        return replace(source, field=field.name, meaning=meaning_of(field.vocabulary))

    def value(self, field: Field, group: str, side: Side) -> Source:
        stored, name = column_of(field), _named(group, field.name)
        vocabulary = field.vocabulary
        more: dict[str, Any] = {"type": field.type, "scale": field.scale, "buckets": field.buckets}
        if vocabulary is not None:
            size = max(self.sizes.get(name, 1 + vocabulary.size), 2)  # it may have learned none yet
            kind: Kind = "bag" if field.type == "bag" else "id"
            more["vocabulary"] = vocabulary.source
            if vocabulary.source == "values":
                more["meaning"] = meaning_of(vocabulary)
        elif field.type == "text":
            kind, size = "bag", 1 + field.buckets
        elif field.type in ("vector", "numbers"):
            kind, size = "vector", field.length
        elif field.type == "flag":
            kind, size = "id", 3
        elif field.scale in ("quantiles", "log"):
            kind, size = "id", 1 + field.buckets
        elif field.scale == "cyclic":
            kind, size = "vector", 2
            more["period"] = field.period
        else:
            assert field.type in ("number", "time"), field.type
            kind, size = "number", 0
        one = Input(name=name, kind=kind, side=side, size=size)
        return Source(
            input=one, how="value", group=group, columns=(field.name,), field=field.name,
            form=((stored.dtype, stored.shape),), **more,
        )  # fmt: skip


_SIDE: dict[str, Side] = {"user": "user", "item": "row"}
_GROUP = {"user": "profile", "item": "counters"}


def _named(of: str, name: str) -> str:
    return f"{of}.{name}"


def _finite(half_life_s: float) -> float | None:
    return None if half_life_s == math.inf else half_life_s


def _meaning(source: Source, declaration: Declaration) -> str:
    """The digest of as many of the declared values as the model knows."""
    if source.columns == (SURFACE,):
        values = tuple(each.name for each in declaration.surfaces)
    else:
        of_group = {"given": declaration.user_given, "context": declaration.context}
        fields = of_group.get(source.group, declaration.item_fields)  # an affinity's are an item's
        vocabulary = next((f.vocabulary for f in fields if f.name == source.field), None)
        if vocabulary is None:
            return ""
        values = vocabulary.values
    return f"{digest(values[: source.input.size - 1]):016x}"
