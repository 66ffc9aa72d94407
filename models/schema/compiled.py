"""A schema.yaml compiled: what services and trainings are handed of a domain.

Beside the file lies its schema.lock. Rows of every layout in it are read, migrated by the names of
their values; rows of any other layout are neither read nor overwritten. So that no process meets a
layout that it does not know, a new revision is first read everywhere and then written: with
`write`, the number of an older revision in the lock, rows keep the layouts of that one until all
processes know the new ones, and no events are accepted that it lacks. A row that has the layout of
a later revision already keeps it, and what a newer revision has taken out stays in older rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import xxhash

from models.schema import lock, read
from models.schema.declaration import Declaration, Event
from models.schema.fold import Fold
from models.schema.groups import FeatureGroup
from models.schema.layout import Layout, layout_of
from models.schema.lock import Lock, Revision
from models.schema.progress import APPLIED, SOURCE


class SchemaUnfit(Exception):
    """A schema.yaml and its lock cannot be used together, or not with the settings; the message
    says what to do."""


@dataclass(frozen=True)
class Schema:
    """A declaration and what follows from it."""

    declaration: Declaration
    layout: Layout
    fold: Fold
    accepted: Mapping[int, Event]  # by their ids: what may be recorded

    @cached_property
    def digest(self) -> int:
        """64 bits that differ when what is declared, read or written does."""
        layouts = [
            [group.hash, *group.older_by_hash, group.writes and group.writes.hash]
            for group in self.layout.groups
        ]
        return xxhash.xxh3_64_intdigest(repr((self.declaration, layouts)).encode())

    @cached_property
    def groups(self) -> Mapping[str, FeatureGroup]:
        """Every group that a feature store holds, by name."""
        return {group.name: group for group in (*self.layout.stored, SOURCE, APPLIED)}


def compiled(
    declaration: Declaration, known: Lock | None = None, write: int | None = None
) -> Schema:
    """A declaration and the layouts that were before it. Raises SchemaUnfit."""
    known = known or Lock()
    if write is not None and not 1 <= write <= len(known.revisions):
        raise SchemaUnfit(
            f"schema_write: {write} is no revision: {lock.NAME} has {len(known.revisions)}. Name"
            " one of them, or leave it out to write the newest"
        )
    later = known.revisions[write - 1 :] if write else ()
    layout = layout_of(declaration)
    groups = {
        name: _with_older(group, known.of(group.name), later)
        for name, group in vars(layout).items()
    }
    layout = Layout(**groups)
    written = layout.history.writes
    if written and written.dtype["item_keys"].shape > layout.history.dtype["item_keys"].shape:
        raise SchemaUnfit(
            f"schema_write: {write} has longer histories, which would be cut for who reads them:"
            " let the newest be written, or keep history.length"
        )
    accepted = {
        event.id: event for event in declaration.events if not later or event.id in later[0].events
    }
    return Schema(declaration, layout, Fold(declaration, layout), accepted)


def _with_older(
    group: FeatureGroup, known: Sequence[FeatureGroup], later: Sequence[Revision]
) -> FeatureGroup:
    """`later`: the revision to be written and those after it; none: the newest is written."""
    older = tuple(each for each in known if each.hash != group.hash)
    hashes = [revision.layouts.get(group.name, group.hash) for revision in later]
    writes = next((each for each in older if hashes and each.hash == hashes[0]), None)
    return replace(group, older=older, writes=writes, stay=frozenset(hashes))


def load(file: Path, write: int | None = None) -> Schema:
    """The schema.yaml and the schema.lock beside it. Raises OSError, SchemaError, LockError and
    SchemaUnfit."""
    declaration, known = read.load(file), lock.read(file.with_name(lock.NAME))
    if known.revisions and known.with_(declaration) != known:
        raise SchemaUnfit(
            f"{lock.NAME} lacks some of what it declares: run `tandem schema lock --file {file}`,"
            " and bring both files to every process"
        )
    return compiled(declaration, known, write)
