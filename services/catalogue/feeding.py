"""Items that come as a table, brought into the catalogue: imported ones, and those of a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import polars as pl

from models.schema.declaration import Declaration
from protos.tandem.v1.catalogue_pb2 import (
    ChangeItemsRequest,
    Item,
    ItemsRequest,
    KnownItem,
    RemoveItemsRequest,
)
from protos.tandem.v1.records_pb2 import FieldValue, ItemRecord
from services.catalogue.builder import Builder
from services.catalogue.merging import Change, Kind
from services.catalogue.values import plain, values_of

AT_ONCE = 500  # changes in a call: some may be long
ID = "item_id"

T = TypeVar("T")


def in_parts(items: Iterable[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


def items_of(
    frame: pl.DataFrame, declaration: Declaration
) -> Iterator[tuple[str, dict[str, FieldValue]]]:
    """The id and the fields of each row of a frame like that of imported items."""
    known = {*declaration.item_field, *declaration.display}
    for row in frame.select(ID, *(c for c in frame.columns if c in known)).iter_rows(named=True):
        item_id = row.pop(ID)
        yield item_id, values_of(row, declaration)


def frame_of(items: Iterable[KnownItem], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Items as a frame of these columns, which `items_of` takes apart again."""
    rows = [
        {ID: known.item.item_id, **{n: plain(v) for n, v in known.item.fields.items()}}
        for known in items
    ]
    texts = [{name: row.get(name) for name in schema} for row in rows]
    return pl.DataFrame(texts, schema=dict(schema), orient="row", strict=False)


class Brought(NamedTuple):
    """What became of a table's items."""

    new: int
    other: int  # that were there before, and say something else


def bring(builder: Builder, frame: pl.DataFrame, declaration: Declaration, at_ms: int) -> Brought:
    """Upsert the rows whose items were never there through a builder that leads, on its thread.
    Raises LogUnavailable, LogSaturated, NotBuilding and Refusal."""
    new = other = 0
    for part in in_parts(items_of(frame, declaration)):
        known = {record.item_id: record for record in builder.known([item for item, _ in part])}
        changes = [Change(Kind.UPSERT, i, at_ms, f) for i, f in part if i not in known]
        other += sum(_differs(known[i], fields) for i, fields in part if i in known)
        if changes:
            done = builder.submit(changes)
            while not done.done():
                builder.step(0.0)
            new += done.result().changed
    return Brought(new, other)


def _differs(record: ItemRecord, fields: Mapping[str, FieldValue]) -> bool:
    """Whether an item is not as these fields say, or is taken out."""
    there = {name: f.value for name, f in record.fields.items() if f.value.WhichOneof("kind")}
    return record.removed or _digest(there) != _digest(fields)


class Plan(NamedTuple):
    """What makes a catalogue equal to a table."""

    new: list[Item]
    other: list[Item]  # that differ
    gone: list[str]  # ids of items that the table does not have
    same: int

    def requests(self, at_ms: int) -> Iterator[ChangeItemsRequest]:
        """The plan as changes."""
        for part in in_parts([*self.new, *self.other]):
            yield ChangeItemsRequest(upsert=ItemsRequest(items=part))
        for ids in in_parts(self.gone):
            yield ChangeItemsRequest(remove=RemoveItemsRequest(item_ids=ids, updated_ms=at_ms))


def planned(
    frame: pl.DataFrame,
    declaration: Declaration,
    known: Iterable[KnownItem],
    at_ms: int,
) -> Plan:
    """What must be done so that the catalogue, of which `known` are all items that are there, is
    what the frame says."""
    there = {each.item.item_id: _digest(each.item.fields) for each in known}
    new, other, same = list[Item](), list[Item](), 0
    for item_id, fields in items_of(frame, declaration):
        before = there.pop(item_id, None)
        if before == _digest(fields):
            same += 1
            continue
        (new if before is None else other).append(
            Item(item_id=item_id, fields=fields, updated_ms=at_ms)
        )
    return Plan(new, other, list(there), same)


def _digest(fields: Mapping[str, FieldValue]) -> int:
    """Equal for equal fields, within this process."""
    return hash(tuple((name, fields[name].SerializeToString()) for name in sorted(fields)))
