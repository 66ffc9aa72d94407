"""Generations of the catalogue: what topic `items` made of it up to an offset, as files, so that
who starts reads those and the rest of the topic.

    <folder>/<offset, 20 digits>-<8 hex digits>/   item_keys.npy  item_removed.npy  item_ids.json
                                                   column.<field>.npy ...
                                                   records.bin  record_places.npy
                                                   generation.json  checksums.json  READY

A generation is built under a temporary name, synced, sealed with READY and then renamed: one that
can be seen is whole. The newest that holds is used; one that does not is left out, and said so. The
records are the items as they were brought, so that a field that is declared since, or otherwise, is
computed from them. The last KEPT generations stay, the others are deleted.

A generation may show later changes than its offset says: the rest of the topic brings them again.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog

from models import sealed
from models.catalogue import ItemTable, item_key
from models.files import sync
from models.schema.declaration import Field
from models.schema.layout import column_of, meaning_of
from protos.tandem.v1.records_pb2 import ItemRecord
from services.catalogue.fold import CatalogueFold
from services.catalogue.stored_records import PLACES_FILE, RECORDS_FILE, StoredRecords
from services.catalogue.values import column

log = structlog.get_logger(__name__)

KEYS_FILE, REMOVED_FILE, IDS_FILE = "item_keys.npy", "item_removed.npy", "item_ids.json"
STATE_FILE = "generation.json"
BUILDING = ".building-"
KEPT = 2
_NAME = re.compile(r"[0-9]{20}-[0-9a-f]{8}")
_AT_ONCE = 10_000  # records of a column that is computed anew
_NUMBERS = ("catalogue", "builder", "nonce", "imported", "offset")


class State(NamedTuple):
    """What a generation holds: the catalogue at one moment."""

    items: ItemTable
    fields: Sequence[Field]
    records: StoredRecords
    changes: int  # as the fold counts them
    topic: str  # identity of the topic
    catalogue: int
    builder: int
    nonce: int
    imported: int
    offset: int

    @staticmethod
    def of(fold: CatalogueFold, topic: str) -> State:
        """That of a fold which keeps all fields and records; on the thread that folds."""
        assert fold.records is not None
        return State(
            fold.table.items,
            fold.table.fields,
            fold.records,
            fold.changes,
            topic,
            fold.identity,
            fold.builder,
            fold.nonce,
            fold.imported,
            fold.offset,
        )


def write(folder: Path, of: State) -> Path:
    """Write a generation. OSError and sealed.Broken: nothing was written."""
    state, offset = of.items, of.offset
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=folder))
    try:
        rows = len(state)
        np.save(building / KEYS_FILE, state.keys)
        np.save(building / REMOVED_FILE, state.removed)
        ids = json.dumps(state.ids[: rows + 1], ensure_ascii=False)
        (building / IDS_FILE).write_text(ids, encoding="utf-8")
        for field in of.fields:
            np.save(building / _column_file(field.name), state.features[field.name])
        lengths = np.zeros(rows + 1, np.int64)
        with (building / RECORDS_FILE).open("wb") as file:
            for row, record in enumerate(of.records.upto(rows)):
                lengths[row] = len(record)
                file.write(record)
        np.save(building / PLACES_FILE, np.append(0, np.cumsum(lengths)))
        numbers = {name: getattr(of, name) for name in _NUMBERS}
        columns = {field.name: _meaning(field) for field in of.fields}
        document = {**numbers, "topic": of.topic, "columns": columns}
        sealed.write_json(building / STATE_FILE, document)
        digest = sealed.confirm(building)
        sealed.seal(building, digest, {"offset": offset})
        building.chmod(0o755)  # mkdtemp makes it private; followers may run as another user
        made = folder / f"{offset:020d}-{digest[:8]}"
        if made.exists():  # the same, once more
            shutil.rmtree(building)
        else:
            building.rename(made)
            sync(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    _forget_old(folder)
    return made


def load(folder: Path, fold: CatalogueFold, topic: str) -> bool:
    """Put the newest generation of this topic that holds into a fold that is empty; whether there
    was one."""
    for generation in newest_first(folder):
        try:
            _load(generation, fold, topic)
        except (sealed.Broken, OSError, ValueError, KeyError, TypeError) as error:
            log.error("generation_refused", generation=str(generation), error=str(error))
        else:
            return True
    return False


def newest_first(folder: Path) -> list[Path]:
    """The generations in a folder."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def delete_of_others(folder: Path, topic: str) -> None:
    """Delete the generations of a topic that was there before this one: they would stand in the
    way of new ones."""
    for generation in newest_first(folder):
        try:
            of_topic = sealed.read_json(generation / STATE_FILE).get("topic")
        except sealed.Broken:  # whoever reads it says so
            continue
        if of_topic != topic:
            log.warning("generation_deleted", generation=generation.name, reason="another topic's")
            shutil.rmtree(generation, ignore_errors=True)


def delete(folder: Path) -> None:
    """Delete all generations of a folder."""
    for generation in newest_first(folder):
        shutil.rmtree(generation, ignore_errors=True)


def _load(generation: Path, fold: CatalogueFold, topic: str) -> None:
    sealed.verify(generation)
    state = sealed.read_json(generation / STATE_FILE)
    if state["topic"] != topic:
        raise ValueError("it is of another topic than is read now, which was made anew")
    identity, *numbers = (int(state[name]) for name in _NUMBERS)
    ids = json.loads((generation / IDS_FILE).read_text(encoding="utf-8"))
    keys, removed = np.load(generation / KEYS_FILE), np.load(generation / REMOVED_FILE)
    if not len(ids) == len(keys) == len(removed):
        raise ValueError(f"{generation}: ids, keys and removed differ in length")
    if any(item_key(ids[row]) != keys[row] for row in np.flatnonzero(keys).tolist()):
        raise ValueError(f"{generation}: keys are not those of the ids")
    there = state["columns"]
    missing = [f for f in fold.table.fields if there.get(f.name) != _meaning(f)]
    columns = {
        field.name: np.load(generation / _column_file(field.name), mmap_mode="r")
        for field in fold.table.fields
        if field not in missing
    }
    records = fold.records or StoredRecords()
    records.open(generation)
    columns |= {field.name: np.zeros(len(keys), fold.table.dtype[field.name]) for field in missing}
    if missing:
        for begin, parsed in _parsed(records, len(keys)):
            for field in missing:
                values = [
                    r.fields[field.name].value if r and field.name in r.fields else None
                    for r in parsed
                ]
                columns[field.name][begin : begin + len(parsed)] = column(field, values)
    fold.table.fill(ids, keys, removed, columns, identity)
    fold.identity = identity
    fold.builder, fold.nonce, fold.imported, fold.offset = numbers


def _parsed(records: StoredRecords, rows: int) -> Iterator[tuple[int, list[ItemRecord | None]]]:
    for begin in range(0, rows, _AT_ONCE):
        yield begin, [records.of_row(row) for row in range(begin, min(begin + _AT_ONCE, rows))]


def _column_file(name: str) -> str:
    return f"column.{name}.npy"


def _meaning(field: Field) -> list[Any]:
    """What a stored column depends on."""
    feature = column_of(field)
    meaning = meaning_of(field.vocabulary) if field.vocabulary else ""
    shape = list(feature.shape)
    return [field.type, feature.dtype, shape, feature.default, field.buckets, meaning]


def _forget_old(folder: Path) -> None:
    """Delete what nobody begins with any more, and what writers that were killed have left."""
    for old in newest_first(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    for left in folder.glob(f"{BUILDING}*"):
        if time.time() - left.stat().st_mtime > 3_600:
            shutil.rmtree(left, ignore_errors=True)
