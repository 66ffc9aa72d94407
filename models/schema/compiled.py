"""A schema.yaml compiled: what services and trainings are handed of a domain.

Beside the file lies its schema.lock. Rows of every layout in it are read, migrated by the names of
their values; rows of any other layout are neither read nor overwritten. So that no process meets a
layout that it does not know, a new revision is first read everywhere and then written: with
`write`, the number of an older revision in the lock, rows keep the layouts of that one until all
processes know the new ones. A row that has the present layout already keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from models.schema import lock, read
from models.schema.declaration import Declaration, Event
from models.schema.fold import Fold
from models.schema.groups import FeatureGroup
from models.schema.layout import Layout, layout_of
from models.schema.lock import Lock
from models.schema.progress import APPLIED, SOURCE


class SchemaUnfit(Exception):
    """A schema.yaml and its lock cannot be used together, or not with the settings; the message
    says what to do."""


@dataclass(frozen=True)
class Schema:
    """A declaration and what follows from it. `revision`: its number in the lock, 0 without one."""

    declaration: Declaration
    layout: Layout
    fold: Fold
    revision: int = 0

    @cached_property
    def events(self) -> Mapping[int, Event]:
        """Events by their ids."""
        return {event.id: event for event in self.declaration.events}

    @cached_property
    def groups(self) -> Mapping[str, FeatureGroup]:
        """Every group that a feature store holds, by name."""
        return {group.name: group for group in (*self.layout.stored, SOURCE, APPLIED)}


def compiled(
    declaration: Declaration, known: Lock | None = None, write: int | None = None
) -> Schema:
    """A declaration and the layouts that were before it. Raises SchemaUnfit."""
    known = known or Lock()
    layout = layout_of(declaration)
    if known.revisions and known.with_(declaration) != known:
        raise SchemaUnfit(
            f"{lock.NAME} lacks some of what schema.yaml declares: run `tandem schema lock`, and"
            " bring both files to every process"
        )
    if write is not None and not 1 <= write <= len(known.revisions):
        raise SchemaUnfit(
            f"schema_write: {write} is no revision: {lock.NAME} has {len(known.revisions)}. Name"
            " one of them, or leave it out to write the newest"
        )
    written = known.revisions[write - 1] if write else {}
    groups = {
        name: _with_older(group, known.of(group.name), written.get(group.name, group.hash))
        for name, group in vars(layout).items()
    }
    layout = Layout(**groups)
    return Schema(declaration, layout, Fold(declaration, layout), len(known.revisions))


def _with_older(group: FeatureGroup, known: tuple[FeatureGroup, ...], written: int) -> FeatureGroup:
    older = tuple(each for each in known if each.hash != group.hash)
    writes = next((each for each in older if each.hash == written), None)
    return replace(group, older=older, writes=writes)


def load(file: Path, write: int | None = None) -> Schema:
    """The schema.yaml and the schema.lock beside it. Raises OSError, SchemaError, LockError and
    SchemaUnfit."""
    return compiled(read.load(file), lock.read(file.with_name(lock.NAME)), write)
