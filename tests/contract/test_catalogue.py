"""The catalogue over every event log: one builds, all follow, and nothing that was acknowledged is
lost or misread, whatever dies."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from load_tests.serving.feeding import send
from models.catalogue import ItemTable, item_key
from protos.tandem.v1.records_pb2 import FieldValue, ItemRecord
from services.catalogue import builder as building_module
from services.catalogue import generations
from services.catalogue.builder import Builder, NotBuilding
from services.catalogue.fold import BEGINS, CatalogueFold
from services.catalogue.follower import CatalogueFollower
from services.catalogue.generation_writer import state_of
from services.catalogue.merging import Change, Kind
from services.common.rpc import Refusal
from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, LogUnavailable, Record
from services.event_log.topics import ITEMS
from tests.building import Expected, building, followed
from tests.contract.event_logs import Backend, new_name
from tests.items_domain import SCHEMA, T0, changes


def opened(backend: Backend, name: str) -> EventLog:
    """The log of an installation; embedded, with segments so small that it is always compacted."""
    return backend.open(installation=name, compacted={ITEMS}, segment_mb=1e-4)


@pytest.fixture
def open_log(backend: Backend) -> Callable[[], EventLog]:
    """Opens the log of one installation of its own, as another process would."""
    name = new_name()
    return lambda: opened(backend, name)


@pytest.fixture
def log(open_log: Callable[[], EventLog]) -> EventLog:
    return open_log()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "generations"


def priced(*prices: float, at: int = T0, kind: Kind = Kind.UPSERT) -> list[Change]:
    return [
        Change(kind, f"i{n}", at, {"price": FieldValue(number=price)})
        for n, price in enumerate(prices)
    ]


def removal(*items: str, at: int = T0 + 1) -> list[Change]:
    return [Change(Kind.REMOVE, item, at) for item in items]


def prices(table: ItemTable) -> dict[str, float]:
    """Of the items that are there."""
    return {
        table.ids[row]: float(table.features["price"][row])
        for row in range(1, len(table) + 1)
        if not table.removed[row]
    }


@pytest.fixture
def follower(log: EventLog, folder: Path) -> Iterator[CatalogueFollower]:
    made = CatalogueFollower(log, folder, SCHEMA)
    made.begin()
    yield made
    made.close()


def until(follower: CatalogueFollower, shows: Callable[[ItemTable], bool]) -> ItemTable:
    """Step until the follower shows it."""
    for _ in range(300):
        if shows(follower.items):
            return follower.items
        follower.step(0.1)
    raise AssertionError(f"never shown; it has {prices(follower.items)}")


@given(st.lists(st.lists(changes(), max_size=8), min_size=1, max_size=4))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_follower_has_what_the_changes_say_whenever_it_began(
    backend: Backend, folder: Path, batches: Sequence[Sequence[Change]]
) -> None:
    log, expected = opened(backend, new_name()), Expected()
    early = CatalogueFollower(log, folder / new_name(), SCHEMA)
    early.begin()
    with building(log, folder / new_name()) as builder:
        for batch in batches:
            send(builder, batch)
            expected.apply(batch)
            table = until(early, lambda items: len(items) == len(expected.items))
    while early.step(0.2):
        table = early.items
    expected.check(table)
    expected.check(followed(log, folder / "none"))
    early.close()
    log.close()


def test_states_stay_as_they_were_and_later_ones_say_which_rows_changed(
    log: EventLog, folder: Path, follower: CatalogueFollower
) -> None:
    with building(log, folder) as builder:
        send(builder, priced(1, 2, 3))
        first = until(follower, lambda items: len(items) == 3)
        send(builder, [*removal("i1"), *priced(*range(9), at=T0 + 2)[5:]])
        later = until(follower, lambda items: len(items) == 7)
    assert first.ids[1:4] == ["i0", "i1", "i2"]
    assert (len(first), first.removed.tolist()) == (3, [False] * 4)
    assert later.removed.tolist() == [False, False, True, *[False] * 5]
    assert later.changed_since(first.version).tolist() == [2, 4, 5, 6, 7]
    assert first.changed_since(first.version).tolist() == [2]  # it has changed since, too
    assert later.changed_since(later.version).tolist() == []
    assert first.fingerprint == later.fingerprint
    assert first.row_of("i5") == 0 < later.row_of("i5")


def test_a_second_builder_waits_and_takes_over(
    open_log: Callable[[], EventLog], folder: Path
) -> None:
    first, second = (Builder(open_log(), folder, SCHEMA) for _ in range(2))
    assert first.lead(threading.Event())
    send(first, priced(1, 2))
    stop, leads = threading.Event(), Future[bool]()
    waiting = threading.Thread(target=lambda: leads.set_result(second.lead(stop)))
    waiting.start()
    for _ in range(3):
        send(first, priced(3, 4, at=T0 + 1))
        first.step(0.1)
    assert not leads.done()
    first.close()
    assert leads.result(timeout=60)
    waiting.join()
    send(second, priced(5, at=T0 + 2))
    second.close()
    assert prices(followed(open_log(), folder)) == {"i0": 5.0, "i1": 4.0}


def test_who_is_killed_is_followed_when_nothing_was_heard_of_it_for_the_lease(
    open_log: Callable[[], EventLog], folder: Path
) -> None:
    now = [0.0]
    killed = Builder(open_log(), folder, SCHEMA)
    assert killed.lead(threading.Event())
    send(killed, priced(1, 2))  # and is never heard of again

    def looked(ms: float) -> float:
        now[0] += ms
        return now[0]

    second = Builder(open_log(), folder, SCHEMA, lease_s=5.0, monotonic=lambda: looked(0.1))
    assert second.lead(threading.Event())
    assert now[0] > 5.0
    assert send(second, priced(3, at=T0 + 1)).changed == 1
    with pytest.raises(NotBuilding):
        send(killed, priced(4, at=T0 + 2))
    killed.close()
    second.close()
    assert prices(followed(open_log(), folder)) == {"i0": 3.0, "i1": 2.0}


@pytest.mark.parametrize("empty", [False, True], ids=["a catalogue", "an empty topic"])
def test_of_two_that_begin_at_once_one_builds(
    open_log: Callable[[], EventLog], folder: Path, empty: bool
) -> None:
    if not empty:
        with building(open_log(), folder) as first:
            send(first, priced(1))
    both = [Builder(open_log(), folder, SCHEMA) for _ in range(2)]
    for builder in both:
        builder._read_anew()
    both[0]._begin()
    with pytest.raises(NotBuilding):
        both[1]._begin()
    assert send(both[0], priced(2, at=T0 + 1)).changed == 1
    for builder in both:
        builder.close()
    assert prices(followed(open_log(), folder)) == {"i0": 2.0}


def test_who_does_not_wait_for_an_answer_stops_nobody(log: EventLog, folder: Path) -> None:
    with building(log, folder) as builder:
        given_up = builder.submit(priced(1, 2))
        assert given_up.cancel()
        assert send(builder, priced(3)).changed == 1
    assert prices(followed(log, folder)) == {"i0": 3.0}


def test_an_item_that_is_too_large_for_a_record_is_refused_and_no_other(
    log: EventLog, folder: Path
) -> None:
    large = FieldValue(text="x" * 600_000)
    with building(log, folder) as builder:
        for name in ("title", "about"):
            builder.submit([Change(Kind.UPSERT, "i0", T0, {name: large})])
        builder.step(0.0)
        patch = builder.submit([Change(Kind.PATCH, "i0", T0 + 1, {"title": large})])
        with_it = builder.submit(priced(1, 5))
        builder.step(0.0)
        with pytest.raises(Refusal, match="'i0' has 1200"):
            patch.result()
        assert with_it.result().changed == 2
        control = builder.submit([Change(Kind.UPSERT, "\x00builds", T0)])
        builder.step(0.0)
        with pytest.raises(Refusal, match="begins with a control character"):
            control.result()


def test_a_generation_is_of_one_moment_whatever_happens_while_it_is_written(
    log: EventLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with building(log, folder) as builder:
        send(builder, priced(1, 2))
        state = state_of(builder._fold, builder._topic)
        send(builder, [*priced(3, at=T0 + 1), *removal("i1"), *priced(5, 6, 7, at=T0 + 1)[2:]])
        with monkeypatch.context() as broken:
            failed = Future[None]()
            failed.set_exception(LogUnavailable("away"))
            broken.setattr(log, "append", lambda *_: failed)
            builder._heartbeat_at = 0.0
            builder.step(0.0)
        send(builder, priced(9, at=T0 + 2))  # under another number
        expected = {"i0": 9.0, "i2": 7.0}
        generations.delete(folder)
        generations.write(folder, state)
        assert prices(followed(log, folder)) == expected
    with building(log, folder) as builder:
        send(builder, [Change(Kind.UPSERT, "new", T0)])
        assert [r.row for r in builder.known(["i2", "new"])] == [3, 4]


def test_what_cannot_be_folded_is_read_again(
    log: EventLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = CatalogueFollower(log, folder, SCHEMA)
    follower.begin()
    with building(log, folder) as builder:
        send(builder, priced(1, 2))
        send(builder, removal("i0"))
    with monkeypatch.context() as broken:
        broken.setattr(CatalogueFold, "fold", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            follower.step(5.0)
    assert prices(until(follower, lambda items: len(items) == 2)) == {"i1": 2.0}
    follower.close()


def test_a_builder_that_is_told_to_end_does_not_wait_for_another(
    open_log: Callable[[], EventLog], folder: Path
) -> None:
    with building(open_log(), folder):
        stop = threading.Event()
        stop.set()
        second = Builder(open_log(), folder, SCHEMA)
        assert not second.lead(stop)
        second.close()


def written(record: ItemRecord) -> Record:
    key = record.item_id.encode() if record.row else BEGINS + str(record.builder).encode()
    return Record(key, record.SerializeToString(), T0)


def test_what_a_builder_writes_after_its_successor_has_begun_is_void(
    log: EventLog, folder: Path, follower: CatalogueFollower
) -> None:
    with building(log, folder) as zombie:
        send(zombie, priced(1, 2))
        (before,) = zombie.known(["i0"])
        late = ItemRecord()
        late.CopyFrom(before)
        late.removed, late.updated_ms = True, T0 + 50
        other = ItemRecord(
            catalogue=before.catalogue, builder=before.builder, row=3, item_id="late"
        )
        successor = ItemRecord(catalogue=before.catalogue, builder=before.builder + 1, nonce=7)
        log.append(ITEMS, [written(successor), written(late), written(other)]).result()
        done = zombie.submit(priced(9, at=T0 + 60))
        with pytest.raises(NotBuilding):
            zombie.step(0.0)
        with pytest.raises(NotBuilding):
            done.result()
    assert prices(until(follower, lambda items: len(items) == 2)) == {"i0": 1.0, "i1": 2.0}
    # A successor writes the void items again, so that compaction cannot lose what holds.
    with building(log, folder, lease_s=0.0) as builder:
        builder.step(0.0)
        send(builder, [Change(Kind.UPSERT, "new", T0 + 70)])
        assert [record.builder for record in builder.known(["i0"])] == [before.builder + 2]
    table = followed(log, folder / "none")
    assert prices(table) | {"new": 0.0} == {"i0": 1.0, "i1": 2.0, "new": 0.0}
    assert table.ids[1:4] == ["i0", "i1", "new"]


def test_rows_never_become_another_items(
    log: EventLog, folder: Path, follower: CatalogueFollower
) -> None:
    with building(log, folder) as builder:
        send(builder, priced(1, 2))
        (known,) = builder.known(["i0"])
        foreign = ItemRecord(
            catalogue=known.catalogue, builder=known.builder, row=1, item_id="thief"
        )
        moved = ItemRecord(catalogue=known.catalogue, builder=known.builder, row=7, item_id="i1")
        log.append(ITEMS, [written(foreign), written(moved)]).result()
        send(builder, priced(3, at=T0 + 1))
    table = until(follower, lambda items: prices(items).get("i0") == 3.0)
    assert table.ids[:3] == ["", "i0", "i1"]
    assert (table.row_of("thief"), table.row_of("i1")) == (0, 2)


def test_records_that_are_none_are_passed_over(
    log: EventLog, folder: Path, follower: CatalogueFollower
) -> None:
    with building(log, folder) as builder:
        send(builder, priced(1))
        log.append(ITEMS, [Record(b"x", b"\xff\xff\xff", T0), Record(b"y", b"", T0)]).result()
        send(builder, priced(2, at=T0 + 1))
    assert prices(until(follower, lambda items: prices(items) == {"i0": 2.0})) == {"i0": 2.0}


def test_an_append_that_fails_is_not_acknowledged_and_its_late_records_are_void(
    log: EventLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with building(log, folder) as builder:
        send(builder, priced(1, 2))
        kept: list[Sequence[Record]] = []

        def fails(topic: str, records: Sequence[Record]) -> Future[None]:
            kept.append(records)
            failed = Future[None]()
            failed.set_exception(LogUnavailable("the disk is full"))
            return failed

        with monkeypatch.context() as broken:
            broken.setattr(log, "append", fails)
            with pytest.raises(LogUnavailable, match="disk is full"):
                send(builder, priced(7, 8, at=T0 + 1))
            with pytest.raises(LogUnavailable, match="disk is full"):
                send(builder, priced(9, at=T0 + 1))
        send(builder, priced(3, at=T0 + 2))
        log.append(ITEMS, kept[0]).result()  # it was on its way all the while
        send(builder, priced(4, at=T0 + 3))
        builder.step(0.0)
        assert [r.fields["price"].value.number for r in builder.known(["i0", "i1"])] == [4, 2]
    assert prices(followed(log, folder / "none")) == {"i0": 4.0, "i1": 2.0}


def test_an_item_with_the_key_of_another_is_refused_and_the_rest_of_other_calls_is_not(
    log: EventLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = {"twin"}
    monkeypatch.setattr(
        building_module, "item_key", lambda i: item_key("i0") if i in alike else item_key(i)
    )
    monkeypatch.setattr(ItemTable, "row_of", _row_of(ItemTable.row_of, alike))
    with building(log, folder) as builder:
        send(builder, priced(1))
        both = [builder.submit([Change(Kind.UPSERT, i, T0)]) for i in ("twin", "other")]
        builder.step(0.0)
        with pytest.raises(Refusal, match="same 64-bit key as 'i0': rename one of them"):
            both[0].result()
        assert both[1].result().changed == 1
        together = builder.submit([Change(Kind.UPSERT, i, T0) for i in ("third", "twin")])
        builder.step(0.0)
        with pytest.raises(Refusal):
            together.result()
        assert not builder.known(["third"])


def _row_of(real: Callable[[ItemTable, str], int], alike: set[str]) -> Callable[..., int]:
    return lambda table, item: real(table, "i0" if item in alike else item)


def test_generations_of_a_log_that_was_put_back_are_deleted(tmp_path: Path, folder: Path) -> None:
    log = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    with building(log, folder) as builder:
        send(builder, priced(1, 2))
    log.close()
    shutil.copytree(tmp_path / "events", tmp_path / "backup")
    log = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    with building(log, folder) as builder:
        send(builder, priced(3, 4, 5, at=T0 + 1))
    log.close()
    shutil.rmtree(tmp_path / "events")
    (tmp_path / "backup").rename(tmp_path / "events")
    log = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    assert prices(followed(log, folder)) == {"i0": 1.0, "i1": 2.0}
    with building(log, folder) as builder:
        for n in range(9):  # past where it was
            send(builder, priced(n, n, at=T0 + 2 + n))
    assert prices(followed(log, folder)) == {"i0": 8.0, "i1": 8.0}
    log.close()


def test_a_topic_that_was_made_anew_is_another_catalogue(tmp_path: Path, folder: Path) -> None:
    """In the embedded log; a broker's topic that is deleted is in the log's own suite."""
    log, anew = (connect(EventLogSettings(url=f"log://{tmp_path}/events"), None) for _ in range(2))
    with building(log, folder) as builder:
        send(builder, priced(1, 2))
    follower = CatalogueFollower(log, folder, SCHEMA)
    follower.begin()
    before = follower.items
    shutil.rmtree(tmp_path / "events" / ITEMS)
    with building(anew, folder / "other") as builder:
        send(builder, [Change(Kind.UPSERT, "else", T0)])
    table = until(follower, lambda items: items.row_of("else") == 1)
    assert table.fingerprint != before.fingerprint
    follower.close()
    for each in (log, anew):
        each.close()
