"""What the first version wrote (tests/fixtures/first_version) is read as it was meant.

Whoever changes a shape decides here, case by case, what is read anew and what is refused instead.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessages
from google.protobuf.unknown_fields import UnknownFieldSet

from feature_store import codec
from feature_store.interface import RowKey
from feature_store.lmdb_store import LmdbFeatureStore
from models.artifact import ArtifactError, current, load_items, load_verified
from models.data.worlds.films.schema import COUNTS, GROUPS, SCHEMA
from models.schema import first_version
from models.schema.compiled import Schema
from models.schema.fold import Event
from models.schema.progress import admit_user_event, applied_ids
from protos.tandem.v1 import (
    candidate_generation_pb2,
    experiments_pb2,
    features_pb2,
    ranking_pb2,
    recommender_pb2,
    records_pb2,
)
from services.event_log.embedded import EmbeddedEventLog
from services.experiments.measure.fold import Fold
from services.feedback.deliveries import Delivery
from services.feedback.rows import EntityRows

ROWS = EntityRows(SCHEMA)

FIRST = Path(__file__).parents[1] / "fixtures" / "first_version"
EXPECTED: dict[str, Any] = json.loads((FIRST / "expected.json").read_text())
NOW = {
    module.DESCRIPTOR.name: module.DESCRIPTOR
    for module in (
        candidate_generation_pb2,
        experiments_pb2,
        features_pb2,
        ranking_pb2,
        recommender_pb2,
        records_pb2,
    )
}


def fields(messages: Any, prefix: str = "") -> dict[tuple[str, int], tuple[str, int, int, str]]:
    """By message and number: name, type, label and the message or enum of every field."""
    found = {}
    for message in messages:
        path = f"{prefix}.{message.name}"
        for field in message.field:
            found[path, field.number] = (field.name, field.type, field.label, field.type_name)
        found |= fields(message.nested_type, path)
    return found


def enum_values(file: FileDescriptorProto) -> dict[tuple[str, int], str]:
    def of(
        holder: FileDescriptorProto | DescriptorProto, prefix: str
    ) -> dict[tuple[str, int], str]:
        found = {
            (f"{prefix}.{enum.name}", value.number): value.name
            for enum in holder.enum_type
            for value in enum.value
        }
        nested = (
            holder.message_type if isinstance(holder, FileDescriptorProto) else holder.nested_type
        )
        for message in nested:
            found |= of(message, f"{prefix}.{message.name}")
        return found

    return of(file, "")


def reserved(messages: Any, prefix: str = "") -> dict[str, tuple[set[int], set[str]]]:
    """By message: the numbers and the names that no field may have again."""
    found = {}
    for message in messages:
        path = f"{prefix}.{message.name}"
        numbers = {n for span in message.reserved_range for n in range(span.start, span.end)}
        found[path] = numbers, set(message.reserved_name)
        found |= reserved(message.nested_type, path)
    return found


def test_every_field_and_value_on_the_wire_keeps_its_number_name_and_type_or_is_reserved() -> None:
    first = FileDescriptorSet.FromString((FIRST / "descriptors.binpb").read_bytes())
    assert {file.name for file in first.file} <= set(NOW)
    for then in first.file:
        now = FileDescriptorProto()
        NOW[then.name].CopyToProto(now)
        kept = fields(now.message_type)
        free = reserved(now.message_type)
        for (path, number), field in fields(then.message_type).items():
            numbers, names = free[path]
            assert kept.get((path, number)) == field or (number in numbers and field[0] in names)
        assert enum_values(then).items() <= enum_values(now).items()


def test_a_hash_that_a_layout_had_stands_for_that_layout_for_ever() -> None:
    """A row is decoded by its hash alone: an equal one with another layout would misread it."""
    for name, described in EXPECTED["schema"]["groups"].items():
        group = GROUPS.get(name)
        if group is not None and f"{group.hash:016x}" == described["hash"]:
            assert group.dtype == np.dtype(ast.literal_eval(EXPECTED["dtypes"][name]))


@pytest.mark.parametrize(
    ("topic", "key", "message"),
    [
        ("feedback", "events", records_pb2.FeedbackEvent),
        ("decisions", "decisions", records_pb2.DecisionRecord),
        ("experiments", "changes", records_pb2.ExperimentChange),
    ],
)
def test_every_record_of_its_log_is_read(
    topic: str, key: str, message: type[Message], tmp_path: Path
) -> None:
    shutil.copytree(FIRST / "events", tmp_path / "events")
    log = EmbeddedEventLog(tmp_path / "events")
    consumer = log.consumer(topic, "a-reader")
    expected = {bytes.fromhex(value) for value in EXPECTED[key]}
    found: list[bytes] = []
    while records := consumer.poll(100, 0.2):
        found += [record.value for record in records]
    consumer.close()
    log.close()
    assert len(found) == len(expected)
    assert set(found) == expected
    assert all(not UnknownFieldSet(message.FromString(value)) for value in found)


def test_every_row_of_its_feature_store_is_read(tmp_path: Path) -> None:
    shutil.copytree(FIRST / "features", tmp_path / "features")
    store = LmdbFeatureStore(tmp_path / "features", GROUPS, 16)
    for name, rows in EXPECTED["rows"].items():
        for entity, expected in rows.items():
            (row,) = store.read([RowKey(name, entity)])
            assert row is not None
            assert row.hex() == expected
            groups = {**GROUPS, "user_delivery": first_version.DELIVERY}
            decoded = codec.decode(groups[name], row)
            assert decoded is not None
            if name == "profile":
                counts = [int(decoded.record[c]) for c in COUNTS]
                assert counts == {"u1": [4, 4, 4], "u2": [0, 1, 0]}[entity]
    store.close()


@pytest.mark.parametrize("user", ["u1", "u2"])
def test_what_its_users_rows_have_counted_is_not_counted_again(user: str, tmp_path: Path) -> None:
    """Each record of its log, sent again: its updater had applied them all."""
    shutil.copytree(FIRST / "features", tmp_path / "features")
    store = LmdbFeatureStore(tmp_path / "features", GROUPS, 16)
    rows = store.read([RowKey(group.name, user) for group in ROWS.of_user])
    store.close()
    events = [records_pb2.FeedbackEvent.FromString(bytes.fromhex(e)) for e in EXPECTED["events"]]
    again = [
        Delivery(0, 10_000 + n, e.item_id, Event(e.event_id, user, 1, 2, e.event_time_ms), None)
        for n, e in enumerate(events)
        if e.user_id == user
    ]
    assert again
    folded = ROWS.fold_user(user, rows, again, 2**62)
    assert folded.fresh == []
    another = [again[0]._replace(event=again[0].event._replace(event_id="another"))]
    folded = ROWS.fold_user(user, rows, another, 2**62)
    assert folded.fresh == another
    assert folded.write is not None
    delivery = codec.decode(GROUPS["user_delivery"], folded.write.rows["user_delivery"])
    assert delivery is not None
    assert int(delivery.record["recent"]) == len({d.event.event_id for d in again}) + 1


@pytest.mark.parametrize("used", [0, 1, 31, 32, 991, 1000, 1024])
@pytest.mark.parametrize("next_slot", [0, 5])
def test_every_id_of_a_first_versions_row_stays_known(used: int, next_slot: int) -> None:
    row = first_version.DELIVERY.defaults()
    hashes = np.random.default_rng(used).integers(1, 2**64, used, dtype=np.uint64)
    row["ring"][: len(hashes)] = hashes
    row["ring"], row["ring_next"] = np.roll(row["ring"], next_slot), (used + next_slot) % 1024
    now = first_version.split_delivery(row, 7)
    assert set(hashes >> np.uint64(24)) <= set(applied_ids(*now).tolist())
    delivery, older = now
    for i in range(3000):  # and room is made as for any others
        event = Event(f"e{i}", "u", 1, 2, 8)
        assert admit_user_event(delivery, older, 0, i, event)


@pytest.mark.parametrize("name", ["ssl_two_tower", "masknet"])
@pytest.mark.parametrize("load", [load_verified, load_items])
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_its_artifacts_are_refused_in_a_sentence_that_says_what_to_do(
    load: Callable[..., object], name: str, schema: Schema | None
) -> None:
    """They do not say what their models read, and their tables lack what is read now."""
    folder = current(FIRST / "artifacts", name)
    with pytest.raises(ArtifactError) as refused:
        load(folder, schema)
    assert str(refused.value) == (
        f"{folder}/checksums.json: confirms no item_counts.npy: another build of Tandem made it,"
        " or it is damaged: make it anew"
    )


def test_a_list_by_a_method_that_is_gone_is_read_and_has_no_preference() -> None:
    """Its decision is an exposure like any other."""
    files = FileDescriptorSet.FromString((FIRST / "descriptors.binpb").read_bytes()).file
    first: Any = GetMessages(files, DescriptorPool())["tandem.v1.DecisionRecord"]
    record = first(request_id="r", user_id="u", item_ids=["m1", "m2"], outcome=0)
    record.assignments.add(experiment="mix", arm="interleaved", unit="user")
    list_ = record.interleaving
    list_.method, list_.teams = "balanced", b"\0\1"
    list_.a_ranks, list_.b_ranks = b"\1\0\2\0", b"\2\0\1\0"
    fold = Fold()
    assert fold.on_decision(records_pb2.DecisionRecord.FromString(record.SerializeToString()))
    settled = fold.settled()
    assert not settled.decisions["drafted"].any()
    assert not len(settled.places)
    ((exposure,),) = settled.combinations.values()
    assert (exposure.experiment, exposure.arm) == ("mix", "interleaved")
