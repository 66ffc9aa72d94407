"""Catalogues for tests and benchmarks: the items of a table, brought in as an owner would."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from models.catalogue import ItemTable
from protos.tandem.v1.records_pb2 import FieldValue
from services.catalogue.builder import Builder
from services.catalogue.main import builder_of
from services.catalogue.merging import Change, Kind, Outcome
from services.catalogue.values import values_of
from services.common.schema import schema_of
from services.common.settings import Settings
from services.event_log.connect import connect

FED_MS = 1_600_000_000_000


@contextlib.contextmanager
def builder_for(settings: Settings) -> Iterator[Builder]:
    """A builder of the settings' catalogue that leads in this process."""
    with contextlib.closing(connect(settings.event_log, settings.installation)) as log:
        builder = builder_of(settings, log)
        try:
            assert builder.lead(threading.Event())
            yield builder
        finally:
            builder.close()


def send(builder: Builder, changes: Sequence[Change]) -> Outcome:
    """Hand a builder changes and let it work until they are acknowledged."""
    done = builder.submit(changes)
    while not done.done():
        builder.step(0.0)
    return done.result()


def feed(settings: Settings, items: ItemTable) -> None:
    """Bring a table's items into the settings' catalogue, in the table's order; of learned fields,
    of which the table has hashes, nothing."""
    with builder_for(settings) as builder:
        known = fields_of(settings, items)
        changes = [Change(Kind.UPSERT, i, FED_MS, f) for i, f in known]
        for begin in range(0, len(changes), 1000):
            send(builder, changes[begin : begin + 1000])


def fields_of(settings: Settings, items: ItemTable) -> Iterator[tuple[str, dict[str, FieldValue]]]:
    """The id and the fields of each item of a table."""
    declaration = schema_of(settings).declaration
    there = items.features.dtype.names or ()
    for row in range(1, len(items) + 1):
        found: dict[str, Any] = {}
        for field in declaration.item_fields:
            if field.name not in there:
                continue
            held = items.features[field.name][row]
            if field.vocabulary is not None:
                if field.vocabulary.source != "values":
                    continue
                names = [field.vocabulary.values[i - 1] for i in np.atleast_1d(held) if i]
                if names:
                    found[field.name] = names if field.type == "bag" else names[0]
            elif field.type in ("number", "time"):
                found[field.name] = float(held)
            elif field.type == "flag":
                found[field.name] = bool(held)
            elif field.type in ("vector", "numbers"):
                found[field.name] = held.tolist()
        yield items.ids[row], values_of(found, declaration)
