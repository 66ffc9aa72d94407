"""Generations: what is written is read, or left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from load_tests.serving.feeding import send
from models.schema import read
from models.schema.compiled import compiled
from protos.tandem.v1.records_pb2 import FieldValue
from services.catalogue import generations
from services.catalogue.fold import CatalogueFold
from services.catalogue.merging import Change, Kind
from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import EventLog
from services.event_log.topics import ITEMS
from tests.building import Expected, building, followed
from tests.items_domain import SCHEMA, T0, YAML, changes


@pytest.fixture
def log(tmp_path: Path):
    made = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    yield made
    made.close()


def some(count: int, at: int = T0, price: float = 1.0) -> list[Change]:
    fields = {"price": FieldValue(number=price), "colour": FieldValue(text="red")}
    return [Change(Kind.UPSERT, f"i{n}", at, fields) for n in range(count)]


@given(st.lists(st.lists(changes(), max_size=6), max_size=4))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_starts_from_a_generation_and_the_rest_sees_what_the_topic_says(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Change]]
) -> None:
    folder = tmp_path_factory.mktemp("catalogue")
    log = connect(EventLogSettings(url=f"log://{folder}/events"), None)
    expected = Expected()
    for batch in batches:  # each by another builder, which writes a generation at its end
        with building(log, folder / "generations") as builder:
            send(builder, batch)
        expected.apply(batch)
    expected.check(followed(log, folder / "generations"))
    expected.check(followed(log, folder / "none"))
    log.close()


def test_the_newest_generation_that_holds_is_read(tmp_path: Path, log: EventLog) -> None:
    folder, expected = tmp_path / "generations", Expected()
    for batch in (some(3), some(5, T0 + 1, 2.0)):
        with building(log, folder) as builder:
            send(builder, batch)
        expected.apply(batch)
    newest, older = generations.newest_first(folder)
    for file in sorted(newest.iterdir()):
        kept = file.read_bytes()
        for damaged in (kept[: len(kept) // 2], bytes(b ^ 1 for b in kept[:1]) + kept[1:], None):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            fold = CatalogueFold(SCHEMA)
            assert generations.load(folder, fold, log.identity(ITEMS))
            assert f"{fold.offset:020d}" == older.name.split("-")[0], file.name
            expected.check(followed(log, folder))
        file.write_bytes(kept)
    shutil.rmtree(newest)
    shutil.rmtree(older)
    expected.check(followed(log, folder))


def test_a_field_that_is_declared_since_or_otherwise_is_computed_from_what_was_brought(
    tmp_path: Path, log: EventLog
) -> None:
    before = compiled(read.parse(YAML.replace("    price:", "    cost:").encode(), "schema.yaml"))
    folder = tmp_path / "generations"
    with building(log, folder, before) as builder:
        send(builder, some(3))
    more_colours = YAML.replace("[red, green, blue]", "[blue, green, red]")
    now = compiled(read.parse(more_colours.encode(), "schema.yaml"))
    table = followed(log, folder, now)
    assert table.features["price"][1:].tolist() == [1.0, 1.0, 1.0]
    assert table.features["colour"][1:].tolist() == [3, 3, 3]
    assert len(generations.newest_first(folder)) == 1


def test_a_writer_that_fails_leaves_nothing_and_the_old_one_stays(
    tmp_path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = tmp_path / "generations", Expected()
    with building(log, folder) as builder:
        send(builder, some(2))
    expected.apply(some(2))
    (there,) = folder.iterdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("seal", "write_json"):
        with monkeypatch.context() as patched:
            patched.setattr(generations.sealed, name, full)
            with building(log, folder) as builder:
                send(builder, some(3))
        assert list(folder.iterdir()) == [there]
    expected.apply(some(3))
    expected.check(followed(log, folder))


def test_two_are_kept_and_what_killed_writers_left_is_deleted(
    tmp_path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "generations"
    left = folder / f"{generations.BUILDING}left"
    left.mkdir(parents=True)
    for n in range(4):
        with building(log, folder) as builder:
            send(builder, some(n + 1))
    assert left.exists()  # somebody may be writing it
    monkeypatch.setattr(generations.time, "time", lambda: left.stat().st_mtime + 4_000)
    with building(log, folder) as builder:
        send(builder, some(9))
    assert not left.exists()
    assert len(list(folder.iterdir())) == generations.KEPT


def test_an_empty_catalogue_has_a_generation_too(tmp_path: Path, log: EventLog) -> None:
    with building(log, tmp_path / "generations"):
        pass
    table = followed(log, tmp_path / "generations")
    assert len(table) == 0
    assert not np.any(table.index_of(np.array([1, 2], np.uint64)))


def test_a_topic_made_anew_gets_generations_of_its_own(tmp_path: Path, log: EventLog) -> None:
    folder = tmp_path / "generations"
    for n in range(3):
        with building(log, folder) as builder:
            send(builder, some(9 + n))
    log.close()
    shutil.rmtree(tmp_path / "events")
    anew, expected = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None), Expected()
    with building(anew, folder) as builder:
        send(builder, some(1))
    expected.apply(some(1))
    (made,) = generations.newest_first(folder)
    fold = CatalogueFold(SCHEMA)
    assert generations.load(folder, fold, anew.identity(ITEMS)), made
    expected.check(followed(anew, folder))
    anew.close()


def test_a_value_out_of_the_range_of_the_type_it_has_now_is_the_default(
    tmp_path: Path, log: EventLog
) -> None:
    folder = tmp_path / "generations"
    with building(log, folder) as builder:
        send(builder, some(2, price=1e30))
    as_time = YAML.replace("price: {type: number, scale: log, buckets: 4}", "price: {type: time}")
    now = compiled(read.parse(as_time.encode(), "schema.yaml"))
    for where in (folder, tmp_path / "none"):
        assert followed(log, where, now).features["price"][1:].tolist() == [0, 0]
