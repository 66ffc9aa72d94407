"""Builders and followers over an event log, and what they must show."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from models.catalogue import ItemTable
from models.schema.compiled import Schema
from protos.tandem.v1.records_pb2 import ItemRecord
from services.catalogue.builder import Builder
from services.catalogue.follower import CatalogueFollower
from services.catalogue.merging import Change, changed
from services.catalogue.values import column
from services.event_log.interface import EventLog
from tests.items_domain import SCHEMA


@contextmanager
def building(
    log: EventLog, folder: Path, schema: Schema = SCHEMA, **options: float
) -> Iterator[Builder]:
    """A builder that leads; it writes a generation at its end."""
    builder = Builder(log, folder, schema, **options)  # type: ignore[arg-type]
    assert builder.lead(threading.Event())
    yield builder
    builder.close()


def followed(log: EventLog, folder: Path, schema: Schema = SCHEMA) -> ItemTable:
    """The catalogue as a process sees it that starts now."""
    follower = CatalogueFollower(log, folder, schema)
    follower.begin()
    follower.close()
    return follower.items


class Expected:
    """The catalogue by the definition: every change in its order, rows in the order of coming."""

    def __init__(self) -> None:
        self.items: dict[str, ItemRecord] = {}

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            after = changed(self.items.get(change.item_id), change)
            if after is not None:
                self.items[change.item_id] = after

    def check(self, table: ItemTable, schema: Schema = SCHEMA) -> None:
        """Assert that a table is this."""
        assert table.ids[: len(table) + 1] == ["", *self.items]
        for row, (item_id, record) in enumerate(self.items.items(), 1):
            assert table.row_of(item_id) == row
            assert bool(table.removed[row]) == record.removed
            for field in schema.declaration.item_fields:
                held = record.fields[field.name].value if field.name in record.fields else None
                there = table.features[field.name][row]
                assert np.array_equal(there, column(field, [held])[0]), (item_id, field.name)
