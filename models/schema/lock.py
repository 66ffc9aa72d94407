"""schema.lock: every layout, event id and vocabulary that rows may have been written with.

`tandem schema lock` appends what the schema.yaml beside it has come to need; its owner commits the
file, and services only read it. So rows of an older layout are known by their hash and migrated by
the names of their values (compiled.py), and a change that would make old rows or records mean
something else is refused before anything is written: an event's id is never given to another event,
a declared vocabulary only grows at its end, and a field keeps its type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.files import replace_whole
from models.schema.declaration import Declaration, Field
from models.schema.groups import FOR_EVER_S, Feature, FeatureGroup
from models.schema.layout import digest, layout_of
from models.yaml_reader.problems import Problem

NAME = "schema.lock"
FORMAT = 1
REPAIR = "Take it from version control"


class LockError(Exception):
    """A schema.lock cannot be read; the message names the file and what to do."""


@dataclass(frozen=True)
class Values:
    """A vocabulary as it was: where its values come from, and of declared ones how many and a
    digest of them."""

    source: str
    count: int = 0
    digest: str = ""

    @staticmethod
    def of(each: Field, count: int | None = None) -> Values:
        """That of a field, or of its first `count` values."""
        vocabulary = each.vocabulary
        if vocabulary is None:
            return Values("")
        if vocabulary.source != "values":
            return Values("hashes")
        values = vocabulary.values[:count]
        return Values("values", len(values), f"{digest(values):016x}")


@dataclass(frozen=True)
class Revision:
    """A declaration that was locked."""

    events: frozenset[int]  # ids
    layouts: Mapping[str, int]  # hashes, by group


@dataclass(frozen=True)
class Lock:
    """What was ever declared."""

    events: Mapping[int, str] = field(default_factory=dict)  # names by id
    fields: Mapping[str, str] = field(default_factory=dict)  # types, and units of values, by place
    values: Mapping[str, Values] = field(default_factory=dict)  # of categories and bags, so named
    layouts: tuple[FeatureGroup, ...] = ()  # each once, oldest first
    revisions: tuple[Revision, ...] = ()  # of every declaration that was locked; the first is 1

    def with_(self, declaration: Declaration) -> Lock:
        """This lock with what a declaration adds. Ask `problems` first: there must be none."""
        known = {(group.name, group.hash, group.meaning) for group in self.layouts}
        groups = layout_of(declaration).groups
        new = [g for g in groups if (g.name, g.hash, g.meaning) not in known]
        fields = dict(_fields(declaration))
        ids = frozenset(event.id for event in declaration.events)
        revision = Revision(ids, {group.name: group.hash for group in groups})
        revisions = self.revisions
        if not revisions or revisions[-1] != revision:
            revisions = (*revisions, revision)
        return Lock(
            dict(self.events) | {event.id: event.name for event in declaration.events},
            dict(self.fields) | {name: kind for name, kind, _ in _kinds(declaration)},
            dict(self.values)
            | {name: Values.of(each) for name, each in fields.items() if each.vocabulary},
            (*self.layouts, *new),
            revisions,
        )

    def of(self, group: str) -> tuple[FeatureGroup, ...]:
        """The layouts of a group, each once."""
        return tuple({each.hash: each for each in self.layouts if each.name == group}.values())

    def text(self) -> str:
        """The file: one line for each entry, so that versions of it can be compared."""
        layouts = [
            {
                "group": group.name,
                "entity": group.entity,
                "layout": f"{group.hash:016x}",
                "meaning": group.meaning,
                "columns": [_column(feature) for feature in group.features],
            }
            for group in self.layouts
        ]
        values = {name: [v.source, v.count, v.digest] for name, v in self.values.items()}
        parts = {
            "events": _lines({str(i): name for i, name in self.events.items()}),
            "fields": _lines(self.fields),
            "values": _lines(values),
            "layouts": _listed(layouts),
            "revisions": _listed(
                {
                    "events": sorted(revision.events),
                    "layouts": {name: f"{i:016x}" for name, i in revision.layouts.items()},
                }
                for revision in self.revisions
            ),
        }
        body = ",\n".join(f' "{name}": {part}' for name, part in parts.items())
        return f'{{\n "format": {FORMAT},\n{body}\n}}\n'


def _column(feature: Feature) -> list[Any]:
    column = [feature.name, feature.dtype, list(feature.shape), feature.default]
    return [*column, feature.became] if feature.became else column


def _listed(entries: Iterable[Mapping[str, Any]]) -> str:
    body = ",\n".join("  " + json.dumps(each) for each in entries)
    return f"[\n{body}\n ]" if body else "[]"


def _lines(entries: Mapping[str, Any]) -> str:
    body = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
    return f"{{\n{body}\n }}" if body else "{}"


def read(path: Path) -> Lock:
    """A lock; an empty one where there is no file. Raises LockError."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise LockError(f"{path}: format {content['format']} is not known. Use a newer Tandem.")
        lock = Lock(
            {int(i): str(name) for i, name in content["events"].items()},
            {str(name): str(kind) for name, kind in content["fields"].items()},
            {str(name): Values(*entry) for name, entry in content["values"].items()},
            tuple(map(_group, content["layouts"])),
            tuple(
                Revision(
                    frozenset(map(int, entry["events"])),
                    {str(name): int(layout, 16) for name, layout in entry["layouts"].items()},
                )
                for entry in content["revisions"]
            ),
        )
        hashes = [f"{group.hash:016x}" for group in lock.layouts]
        if hashes != [entry["layout"] for entry in content["layouts"]]:
            raise ValueError("a layout is not that of its hash")
        known = {(group.name, group.hash) for group in lock.layouts}
        if any(not known.issuperset(revision.layouts.items()) for revision in lock.revisions):
            raise ValueError("a revision has a layout that is not there")
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise LockError(f"{path}: cannot be read ({error.strerror}). {REPAIR}.") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LockError(f"{path}: `tandem schema lock` wrote no such file. {REPAIR}.") from error
    return lock


def _group(entry: Mapping[str, Any]) -> FeatureGroup:
    columns = tuple(
        Feature(name, dtype, tuple(shape), default, became="".join(became))
        for name, dtype, shape, default, *became in entry["columns"]
    )
    group = FeatureGroup(entry["group"], entry["entity"], FOR_EVER_S, columns, entry["meaning"])
    group.defaults()  # of types that numpy knows
    return group


def write(path: Path, lock: Lock) -> None:
    """Replace the file in one step; OSError."""
    replace_whole(path, lock.text(), durable=True, mode=0o644)


A_TEXT = "a text"  # in locks of before they said how many buckets


def problems(lock: Lock, declaration: Declaration) -> list[Problem]:
    """What a declaration may not change of what was declared before."""
    found = []
    for event in declaration.events:
        before = lock.events.get(event.id, event.name)
        if before != event.name:
            found.append(
                Problem(
                    event.line,
                    f"events.{event.name}.id",
                    f"id {event.id} is that of the event {before}, whose records it would become",
                    f"Call it {before}: an event keeps its name. If it is another event, give it "
                    "an id that none had",
                )
            )
        other = next((i for i, name in lock.events.items() if name == event.name), event.id)
        if other != event.id and lock.events.get(event.id) != event.name:
            found.append(
                Problem(
                    event.line,
                    f"events.{event.name}.id",
                    f"{event.name} had the id {other}: what was counted and recorded has that",
                    f"Write `id: {other}`",
                )
            )
    for name, kind, line in _kinds(declaration):
        was = lock.fields.get(name, kind)
        if was != kind and not (was == A_TEXT and kind.startswith(A_TEXT)):
            fix = "Give the new one a name of its own, and an event an id of its own"
            found.append(Problem(line, name, f"this was {was} and is {kind} now", fix))
    for name, each in _fields(declaration):
        if (before_ := lock.values.get(name)) and before_ != Values.of(each, before_.count):
            found.append(_of_values(name, each, before_))
    return found


def _of_values(name: str, each: Field, before: Values) -> Problem:
    if before.source != Values.of(each).source:
        how = "declared" if before.source == "values" else "hashes"
        reason = f"the values of {each.name} were {how} and are stored otherwise now"
        return Problem(each.line, name, reason, "Give the new field a name of its own")
    return Problem(
        each.line,
        name,
        f"the first {before.count} values of {each.name} are not those of before: stored ids would "
        "stand for others",
        "Restore them and their order, and add new ones at the end; leave unused ones in",
    )


def _fields(declaration: Declaration) -> Iterator[tuple[str, Field]]:
    """Every field by side and name."""
    for side, fields in (
        ("user.given", declaration.user_given),
        ("context", declaration.context),
        ("item.fields", declaration.item_fields),
    ):
        for each in fields:
            yield f"{side}.{each.name}", each
    for event in declaration.events:
        for each in event.properties:
            yield f"events.{event.name}.properties.{each.name}", each


def _kinds(declaration: Declaration) -> Iterator[tuple[str, str, int]]:
    """What may not change of fields and values of events: place, kind, line."""
    for name, each in _fields(declaration):
        buckets = f" of {each.buckets} buckets" if each.type == "text" else ""  # they are stored
        yield name, f"a {each.type}{buckets}", each.line
    for event in declaration.events:
        if event.value:
            yield f"events.{event.name}.value", f"in {event.value.unit}", event.value.line
