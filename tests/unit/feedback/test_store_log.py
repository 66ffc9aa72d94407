"""A feature store follows one event log: another one's offsets would be taken for old ones."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from feature_store import codec
from feature_store.connect import connect as connect_store
from feature_store.interface import FeatureStore, GuardedWrite, RowKey
from models.data.worlds.films.schema import GROUPS
from models.schema.groups import Feature, FeatureGroup
from models.schema.progress import APPLIED, SOURCE
from services import installation
from services.common.settings import Settings
from services.event_log import topics
from services.event_log.connect import connect as connect_log
from services.event_log.interface import EventLog, Record
from services.feedback.store_log import (
    GROUP,
    ForeignLayout,
    OtherLog,
    advance,
    claim,
    empty,
    is_new,
    verify,
)

NOW_MS = 1_800_000_000_000


def settings_of(folder: Path, log: str = "events") -> Settings:
    return Settings(
        feature_store={"url": f"lmdb://{folder}/features", "lmdb_map_size_mb": 16},  # type: ignore[arg-type]
        event_log={"url": f"log://{folder}/{log}"},  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[FeatureStore]:
    url = settings.feature_store.url
    with contextlib.closing(
        connect_store(url, GROUPS, installation=None, timeout_ms=50, lmdb_map_size_mb=16)
    ) as store:
        yield store


def claimed(settings: Settings, store: FeatureStore) -> None:
    with contextlib.closing(connect_log(settings.event_log, None)) as event_log:
        claim(store, event_log, settings, NOW_MS)


def test_the_log_that_a_store_has_read_may_be_read_on(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    for _ in range(2):
        with opened(settings) as store:
            claimed(settings, store)


def test_another_log_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    first, other = settings_of(tmp_path), settings_of(tmp_path, "moved")
    with opened(first) as store:
        claimed(first, store)
        before = store.read([RowKey(SOURCE.name, topics.FEEDBACK)])
        with pytest.raises(
            OtherLog, match=r"/features were made .*/moved .*tandem features rebuild"
        ):
            claimed(other, store)
        assert store.read([RowKey(SOURCE.name, topics.FEEDBACK)]) == before
        claimed(first, store)


def test_a_log_that_was_deleted_and_made_anew_is_another(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with opened(settings) as store:
        claimed(settings, store)
    installation.check_source(settings)
    shutil.rmtree(tmp_path / "events")
    with pytest.raises(OtherLog):
        installation.check_source(settings)


def test_of_two_that_claim_an_empty_store_at_once_the_second_looks_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with opened(settings) as store:

        class Late:
            """Loses the first write to another worker of the same log."""

            def read(self, keys: list[RowKey]) -> list[bytes | None]:
                return store.read(keys)

            def write(self, writes: list[GuardedWrite]) -> list[bool]:
                claimed(settings, store)
                return store.write(writes)

        claimed(settings, Late())  # type: ignore[arg-type]


def test_a_log_of_before_there_were_identities_is_not_judged(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    topic = tmp_path / "events" / topics.FEEDBACK
    topic.mkdir(parents=True)
    (topic / "topic.json").write_text('{"partitions": 2}')
    with opened(settings) as store:
        claimed(settings, store)
        assert store.read([RowKey(SOURCE.name, topics.FEEDBACK)]) == [None]


def read_into(store: FeatureStore, event_log: EventLog, settings: Settings, count: int) -> None:
    """What an updater does to log and store, but for the users' and items' rows."""
    records = [Record(b"u", b"x", NOW_MS)] * count
    event_log.append(topics.FEEDBACK, records).result()
    claim(store, event_log, settings, NOW_MS)
    with contextlib.closing(event_log.consumer(topics.FEEDBACK, GROUP)) as consumer:
        left = count
        while left:
            polled = consumer.poll(left, 5.0)
            left -= len(polled)
            advance(store, {r.partition: r.offset + 1 for r in polled}, NOW_MS)
        consumer.commit()


@contextlib.contextmanager
def read(folder: Path, count: int) -> Iterator[tuple[Settings, FeatureStore, EventLog]]:
    """A store into which `count` records of a log were read."""
    settings = settings_of(folder)
    with (
        opened(settings) as store,
        contextlib.closing(connect_log(settings.event_log, None)) as log,
    ):
        read_into(store, log, settings, count)
        yield settings, store, log


def test_a_log_put_back_from_a_backup_is_refused_at_the_start_and_while_it_is_read(
    tmp_path: Path,
) -> None:
    events, backup = tmp_path / "events", tmp_path / "backup"
    with read(tmp_path, 3):
        pass
    shutil.copytree(events, backup)
    with read(tmp_path, 5):
        pass
    shutil.rmtree(events)
    shutil.copytree(backup, events)
    settings = settings_of(tmp_path)
    with (
        opened(settings) as store,
        contextlib.closing(connect_log(settings.event_log, None)) as log,
    ):
        for judge in (verify, lambda *judged: claim(*judged, NOW_MS)):
            with pytest.raises(OtherLog, match=r"ends at offset 3 .* up to offset 8: .*rebuild"):
                judge(store, log, settings)


def test_a_store_put_back_from_a_backup_makes_the_group_read_the_log_again(
    tmp_path: Path,
) -> None:
    features, backup = tmp_path / "features", tmp_path / "backup"
    with read(tmp_path, 3):
        pass
    shutil.copytree(features, backup)
    with read(tmp_path, 5):
        pass
    shutil.rmtree(features)
    shutil.copytree(backup, features)
    settings = settings_of(tmp_path)
    with (
        opened(settings) as store,
        contextlib.closing(connect_log(settings.event_log, None)) as log,
    ):
        with (
            contextlib.closing(log.consumer(topics.FEEDBACK, GROUP)),
            pytest.raises(OtherLog, match=r"up to offset 3 .* up to offset 8: .*Stop all updaters"),
        ):
            claim(store, log, settings, NOW_MS)
        with structlog.testing.capture_logs() as said:
            claim(store, log, settings, NOW_MS)
        assert [line["event"] for line in said] == ["log_is_read_again"]
        assert log.positions(topics.FEEDBACK, GROUP) == {}


def test_an_emptied_store_is_refused_at_the_start_and_while_it_is_written(tmp_path: Path) -> None:
    with read(tmp_path, 3) as (settings, store, log):
        store.clear(GROUPS)
        with pytest.raises(OtherLog, match=r"does not name its event log any more.*rebuild"):
            verify(store, log, settings)
        with pytest.raises(OtherLog, match=r"have read 3 records .*rebuild"):
            claim(store, log, settings, NOW_MS)
        assert store.read([RowKey(SOURCE.name, topics.FEEDBACK)]) == [None]


@pytest.mark.parametrize("named", [True, False])
def test_a_store_is_new_until_a_log_is_read_into_it_whether_or_not_it_names_the_log(
    tmp_path: Path, named: bool
) -> None:
    settings = settings_of(tmp_path)
    if not named:
        topic = tmp_path / "events" / topics.FEEDBACK
        topic.mkdir(parents=True)
        (topic / "topic.json").write_text('{"partitions": 2}')
    with opened(settings) as store:
        assert is_new(store, settings)
    with read(tmp_path, 3) as (_, store, log):
        assert not is_new(store, settings)
        store.clear([SOURCE.name])
        assert not is_new(store, settings), "it has marks"
        store.clear([APPLIED.name])
        assert not is_new(store, settings), "updaters have read the log into some store"
        log.forget_groups(topics.FEEDBACK, GROUP)
        assert is_new(store, settings)
        advance(store, {1: 1}, NOW_MS)
        assert not is_new(store, settings)


class BreaksOff(Exception):
    """The plan says so."""


def test_a_store_that_was_half_emptied_is_refused_until_that_is_done(tmp_path: Path) -> None:
    with read(tmp_path, 3) as (settings, store, log):

        class Breaking:
            """The store, which breaks off when it is to be cleared."""

            read, write = store.read, store.write

            def clear(self, groups: object) -> int:
                raise BreaksOff

        with pytest.raises(BreaksOff):
            empty(Breaking(), log, GROUPS, NOW_MS)  # type: ignore[arg-type]
        for judge in (verify, lambda *judged: claim(*judged, NOW_MS)):
            with pytest.raises(OtherLog, match=r"broken off"):
                judge(store, log, settings)
        log.forget_groups(topics.FEEDBACK, GROUP)
        assert empty(store, log, GROUPS, NOW_MS) == 1
        claim(store, log, settings, NOW_MS)


def test_a_store_of_before_there_were_marks_gets_those_of_what_was_committed(
    tmp_path: Path,
) -> None:
    with read(tmp_path, 3) as (settings, store, log):
        store.clear([APPLIED.name])
        claim(store, log, settings, NOW_MS)
        rows = store.read([RowKey(APPLIED.name, f"feedback/{p}") for p in range(4)])
        marks = [int(codec.decode(APPLIED, row).record["next_offset"]) for row in rows if row]
        assert sorted(marks) == [0, 0, 0, 3]


def test_a_mark_only_grows(tmp_path: Path) -> None:
    with opened(settings_of(tmp_path)) as store:
        for offset, mark in ((5, 5), (3, 5), (9, 9)):
            advance(store, {0: offset}, NOW_MS)
            (row,) = store.read([RowKey(APPLIED.name, "feedback/0")])
            assert codec.decode(APPLIED, row).record["next_offset"] == mark


@pytest.mark.parametrize("group", [SOURCE, APPLIED])
def test_a_note_of_another_layout_is_refused_and_stays(tmp_path: Path, group: FeatureGroup) -> None:
    with read(tmp_path, 3) as (settings, store, log):
        other = dataclasses.replace(group, features=(*group.features, Feature("more", "<u1")))
        entity = topics.FEEDBACK if group is SOURCE else "feedback/0"
        version = codec.row_version(*store.read([RowKey(group.name, entity)]))
        row = codec.encode(other, other.defaults(), NOW_MS, version + 1)
        assert store.write([GuardedWrite(entity, group.name, version, {group.name: row})]) == [True]
        with pytest.raises(ForeignLayout, match=f"{group.name!r} in layout {other.hash:016x}"):
            claim(store, log, settings, NOW_MS)
        assert store.read([RowKey(group.name, entity)]) == [row]


def test_the_passwords_of_urls_are_in_no_refusal(tmp_path: Path) -> None:
    with read(tmp_path, 3) as (_, store, log):
        secret = Settings(
            feature_store={"url": "redis://:hunter2@127.0.0.1:1/0"},  # type: ignore[arg-type]
            event_log={"url": "kafka://me:hunter2@127.0.0.1:1"},  # type: ignore[arg-type]
        )
        store.clear(GROUPS)
        for judge in (verify, lambda *judged: claim(*judged, NOW_MS)):
            with pytest.raises(OtherLog) as refused:
                judge(store, log, secret)
            assert "hunter2" not in str(refused.value)
            assert "127.0.0.1:1" in str(refused.value)
