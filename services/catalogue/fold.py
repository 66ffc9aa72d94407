"""Topic `items` folded: the catalogue as it is after the records that were read so far.

Its records are those of the items, each whole, and words of their builder. A builder that was
thought dead may still write: what comes from one after its successor has begun is void, for
everybody, as all read the one partition in its order. So the records by which builders begin have a
key each: they are never compacted. Compaction would keep a void record in place of the valid one
before it, so the builder writes that one again as soon as it reads the void one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog
from google.protobuf.message import DecodeError

from models.schema.compiled import Schema
from protos.tandem.v1.records_pb2 import ItemRecord
from services.catalogue.growing import GrowingTable
from services.catalogue.stored_records import StoredRecords
from services.event_log.interface import LogRecord

log = structlog.get_logger(__name__)

# Keys of the builders' words; those of items are their ids.
CONTROL = "\x00"  # begins no id of an item
BEGINS, BUILDS, IMPORTED = b"\x00begins ", b"\x00builds", b"\x00imported"


class CatalogueFold:
    """What the records say. Used by one thread; see GrowingTable for its states."""

    def __init__(
        self,
        schema: Schema,
        fields: Collection[str] | None = None,
        records: StoredRecords | None = None,
    ) -> None:
        """`fields`: of the table, all unless given. `records`: where those in force are kept."""
        self.table = GrowingTable(schema, fields)
        self.records = records
        self.identity = 0  # of the catalogue; 0: nothing has begun
        self.builder = 0  # the number of the latest that has begun
        self.nonce = 0  # its nonce; 0: no word of it was read
        self.ended = False  # whether it has said so
        self.imported = 0  # digest of the imported items that are all in; 0: none
        self.offset = 0  # of the next record
        self.of_builder = 0  # how many records of the latest one were folded
        self.changes = 0  # how many records of items were folded
        self.void: set[str] = set()  # items of which void records came, until written again

    def fold(self, batch: Sequence[LogRecord]) -> None:
        """Take further records of the topic, in their order."""
        items: list[ItemRecord] = []
        for each in batch:
            record = _read(each.value)
            if record is None or self.identity not in (0, record.catalogue):
                log.error("item_record_foreign", offset=each.offset)  # who writes into our topic?
                continue
            self.identity = record.catalogue
            if record.builder < self.builder:
                if record.row:
                    self.void.add(record.item_id)
                continue
            if record.builder > self.builder:
                self.builder, self.nonce, self.of_builder = record.builder, 0, 0
                self.ended = False
            if record.row:
                items.append(record)
            elif self.nonce in (0, record.nonce):
                self.nonce, self.ended = record.nonce, record.ended
                self.imported = record.imported or self.imported
            else:  # of another one with its number, which came second
                continue
            self.of_builder += 1
        if items:
            valid = self.table.fitting(items)
            self.void |= {r.item_id for r in items} - {r.item_id for r in valid}
            if self.records is not None:
                for record in valid:
                    self.records.put(record.row, record.SerializeToString())
            self.table.apply(valid, self.identity)
            self.changes += len(valid)
        if batch:
            # Last: who writes a generation meanwhile says less than it holds, never more.
            self.offset = batch[-1].offset + 1


def _read(value: bytes) -> ItemRecord | None:
    """The record; None for what is none."""
    try:
        record = ItemRecord.FromString(value)
    except DecodeError:
        return None
    whole = record.catalogue and record.builder
    of_item, of_builder = record.row and record.item_id, not record.row and record.nonce
    return record if whole and (of_item or of_builder) else None
