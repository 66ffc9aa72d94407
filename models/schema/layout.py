"""From a declaration to rows: which values are kept of users and items, how wide, and where.

Rows hold ids and numbers. Counts are named by the event's id and their half-life in seconds: a
count with another half-life is another count, and begins at zero. A value of a declared vocabulary
is its place there plus one, 0 being the unknown; one of a learned or hashed vocabulary is the
64-bit hash of its text, which the model that reads it numbers for itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import xxhash

from models.schema.declaration import (
    ANY,
    Affinity,
    Count,
    Declaration,
    Event,
    Field,
    OnSurface,
    Since,
    Vocabulary,
)
from models.schema.groups import FOR_EVER_S, Feature, FeatureGroup
from models.schema.progress import ITEM_DELIVERY, USER_DELIVERY, USER_OLDER

SURFACE = "(surface)"  # the column; no declared name is in parentheses
_SCALARS = {"number": "<f4", "flag": "<u1", "time": "<i8"}
_VECTORS = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True)
class Layout:
    """The groups of a declaration. `item` is the item table's row, which no event changes;
    `context` is what models read of a request, which no row holds; `given`, `item` and `context`
    have no feature where nothing is declared."""

    given: FeatureGroup
    profile: FeatureGroup
    history: FeatureGroup
    user_delivery: FeatureGroup
    user_older: FeatureGroup
    item: FeatureGroup
    counters: FeatureGroup
    item_delivery: FeatureGroup
    context: FeatureGroup

    @cached_property
    def groups(self) -> tuple[FeatureGroup, ...]:
        """All that rows have."""
        names = (name for name in self.__dataclass_fields__ if name != "context")
        return tuple(vars(self)[name] for name in names)

    @cached_property
    def stored(self) -> tuple[FeatureGroup, ...]:
        """Those that a feature store holds: something is declared, and it is no item's own."""
        return tuple(g for g in self.groups if g.features and g is not self.item)

    @cached_property
    def revision(self) -> int:
        """64 bits that differ when a layout or a meaning does."""
        parts = [[group.hash, group.meaning] for group in self.groups]
        return xxhash.xxh3_64_intdigest(json.dumps(parts).encode())


def layout_of(declaration: Declaration) -> Layout:
    """The rows that a declaration needs."""
    length = declaration.history.length
    given = tuple(map(column_of, declaration.user_given))
    fields = tuple(map(column_of, declaration.item_fields))
    history = (
        Feature("length", "<u2", doc="entries in use"),
        Feature("item_keys", "<u8", (length,), doc="items, newest first"),
        Feature("event_times_ms", "<i8", (length,)),
        Feature("event_ids", "<u1", (length,), doc="ids of their events"),
    )
    counters = (
        *_counts(declaration, declaration.item_counts, plain="<f8"),
        Feature("as_of_ms", "<i8", doc="event time that fading counts refer to"),
    )
    upgrades = {
        event.id: sorted(declaration.event[other].id for other in event.upgrades)
        for event in declaration.events
        if event.history
    }
    user_s, item_s = declaration.user_keep_s, declaration.item_keep_s
    return Layout(
        given=_group("given", "user", given, _values_of(declaration.user_given)),
        profile=_group(
            "profile", "user", _profile(declaration), _affinities_of(declaration), user_s
        ),
        history=_group("history", "user", history, upgrades, user_s),
        user_delivery=_kept(USER_DELIVERY, user_s),
        user_older=_kept(USER_OLDER, user_s),
        item=_group("item", "item", fields, _values_of(declaration.item_fields)),
        counters=_group("counters", "item", counters, keep_s=item_s),
        item_delivery=_kept(ITEM_DELIVERY, item_s),
        context=_group("context", "request", _context(declaration)),
    )


def _group(
    name: str,
    entity: str,
    features: Iterable[Feature],
    meaning: Any = None,
    keep_s: float = math.inf,
) -> FeatureGroup:
    text = json.dumps(meaning, sort_keys=True) if meaning else ""
    return _kept(FeatureGroup(name, entity, FOR_EVER_S, tuple(features), text), keep_s)


def _kept(group: FeatureGroup, keep_s: float) -> FeatureGroup:
    return replace(group, ttl_s=min(keep_s, FOR_EVER_S))


def _context(declaration: Declaration) -> Iterator[Feature]:
    yield from map(column_of, declaration.context)
    if any(isinstance(derived, OnSurface) for derived in declaration.derived):
        yield Feature(SURFACE, "<u2", doc="the place of the surface in `surfaces`; 0: none of them")


def _profile(declaration: Declaration) -> Iterator[Feature]:
    yield from _counts(declaration, declaration.user_counts, plain="<u4")
    yield Feature("last_event_ms", "<i8", doc="event time of the newest event")
    kinds = {d.event for d in declaration.derived if isinstance(d, Since)} - {ANY}
    for event in declaration.events:
        if event.name in kinds:
            yield Feature(last_column(event), "<i8", doc=f"time of the newest {event.name}")
    for affinity in declaration.affinities:
        vocabulary = declaration.item_field[affinity.field].vocabulary
        assert vocabulary is not None  # the reader refuses other fields
        yield Feature(
            affinity_column(declaration, affinity),
            "<f4",
            (1 + vocabulary.size,),
            doc=f"{', '.join(affinity.by)} per value of {affinity.field}; first: none given",
        )


def affinity_column(declaration: Declaration, affinity: Affinity) -> str:
    """The column of an affinity."""
    by = "_".join(str(declaration.event[name].id) for name in affinity.by)
    # Names have no dots: no two affinities can have one column.
    return f"affinity.{affinity.name}.{affinity.field}.{by}{_fading(affinity.half_life_s)}"


def last_column(event: Event) -> str:
    """The column of the newest time of an event."""
    return f"last_{event.id}_ms"


def count_column(declaration: Declaration, count: Count) -> str:
    """The column of a count or sum."""
    kind = "sum" if count.of_value else "count"
    return f"{kind}_{declaration.event[count.event].id}{_fading(count.half_life_s)}"


def _counts(declaration: Declaration, counts: Iterable[Count], plain: str) -> Iterator[Feature]:
    for count in counts:
        whole = count.half_life_s == math.inf and not count.of_value
        what = f"sum of the values of {count.event}" if count.of_value else f"{count.event} events"
        yield Feature(count_column(declaration, count), plain if whole else "<f8", doc=what)


def _fading(half_life_s: float) -> str:
    return "" if half_life_s == math.inf else f"_{int(half_life_s)}s"


def column_of(field: Field) -> Feature:
    """How a field is stored."""
    shape = {"bag": (field.slots,), "text": (field.slots,)}.get(field.type, ())
    if field.type in ("vector", "numbers"):
        return Feature(field.name, _VECTORS[field.dtype], (field.length,), whole=True)
    if field.type == "text":
        return Feature(field.name, "<u4", shape)
    if field.vocabulary is None:
        return Feature(field.name, _SCALARS[field.type], default=float(field.default or 0))
    declared = field.vocabulary.source == "values"
    default = 0
    if isinstance(field.default, str):
        default = value_id(field, field.default)
    return Feature(field.name, "<u2" if declared else "<u8", shape, default)


def value_id(field: Field, text: str) -> int:
    """What rows hold of a value of a category or bag; 0 for one that is not declared."""
    vocabulary = field.vocabulary
    assert vocabulary is not None
    if vocabulary.source != "values":
        return xxhash.xxh3_64_intdigest(text.encode()) or 1
    return vocabulary.ids.get(text, 0)


def _values_of(fields: Iterable[Field]) -> dict[str, Any]:
    """What the ids of fields mean: the digest of a declared vocabulary, or that they are hashes."""
    return {f.name: meaning_of(f.vocabulary) for f in fields if f.vocabulary}


def meaning_of(vocabulary: Vocabulary) -> str:
    """What stored ids of a vocabulary stand for."""
    if vocabulary.source != "values":
        return "hashes"
    return f"{digest(vocabulary.values):016x}"


def _affinities_of(declaration: Declaration) -> dict[str, Any]:
    of = (declaration.item_field[a.field] for a in declaration.affinities)
    return _values_of(of)


def digest(values: Iterable[str]) -> int:
    """64 bits of a list of texts."""
    return xxhash.xxh3_64_intdigest(json.dumps(list(values)).encode())
