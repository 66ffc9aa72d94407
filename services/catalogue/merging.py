"""What a change makes of an item: one register for each field, and one for being there.

Each holds what was said last by the time that came with it, so that feeds may arrive in any order:
an item that has been there once is the same whatever the order of changes of different times. Of
equal times the change that arrives last holds, so that sending one again changes nothing. An upsert
says something of every field, also of those that it does not give.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from protos.tandem.v1.records_pb2 import FieldValue, ItemField, ItemRecord

NAMED = 100  # unknown ids in an answer


class Kind(Enum):
    """What a change does with an item."""

    UPSERT = "upsert"
    PATCH = "patch"
    REMOVE = "remove"


class Change(NamedTuple):
    """One change of one item, checked."""

    kind: Kind
    item_id: str
    updated_ms: int
    fields: Mapping[str, FieldValue] = {}  # of a removal none


class Outcome(NamedTuple):
    """What became of the changes of one call."""

    changed: int = 0
    stale: int = 0
    unknown: int = 0
    unknown_ids: tuple[str, ...] = ()

    def plus(self, other: Outcome) -> Outcome:
        """Both together."""
        return Outcome(
            self.changed + other.changed,
            self.stale + other.stale,
            self.unknown + other.unknown,
            (*self.unknown_ids, *other.unknown_ids)[:NAMED],
        )


def changed(before: ItemRecord | None, change: Change) -> ItemRecord | None:
    """The item after the change: `before` itself where what is there is newer, or the same; None
    where it was never there and the change is no upsert. Row and builder are as before."""
    if before is None:
        return _upserted(ItemRecord(), change) if change.kind is Kind.UPSERT else None
    if change.updated_ms < before.updated_ms:
        return before
    if change.kind is Kind.UPSERT:
        after = _upserted(before, change)
    elif change.kind is Kind.PATCH:
        after = _patched(before, change)
    else:
        after = _removed(before, change.updated_ms)
    return before if after == before else after


def _upserted(before: ItemRecord, change: Change) -> ItemRecord:
    at_ms = change.updated_ms
    removed = before.removed and before.removed_ms > at_ms
    after = ItemRecord(
        catalogue=before.catalogue,
        builder=before.builder,
        row=before.row,
        item_id=change.item_id,
        updated_ms=at_ms,
        removed=removed,
        removed_ms=before.removed_ms if removed else 0,
    )
    for name, value in change.fields.items():
        after.fields[name].value.CopyFrom(value)
    for name, field in before.fields.items():
        if field.updated_ms > at_ms:  # patched since
            after.fields[name].CopyFrom(field)
    return after


def _patched(before: ItemRecord, change: Change) -> ItemRecord:
    at_ms = change.updated_ms
    after = ItemRecord()
    after.CopyFrom(before)
    for name, value in change.fields.items():
        known_ms = before.fields[name].updated_ms if name in before.fields else 0
        if at_ms < known_ms:
            continue
        own_ms = at_ms if at_ms > before.updated_ms else 0
        if value.WhichOneof("kind") is not None:
            after.fields[name].CopyFrom(ItemField(value=value, updated_ms=own_ms))
        elif own_ms:
            after.fields[name].CopyFrom(ItemField(updated_ms=own_ms))
        else:
            after.fields.pop(name, None)
    return after


def _removed(before: ItemRecord, at_ms: int) -> ItemRecord:
    if at_ms < before.removed_ms:
        return before
    after = ItemRecord()
    after.CopyFrom(before)
    after.removed, after.removed_ms = True, at_ms
    return after
