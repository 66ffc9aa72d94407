"""A feature store follows one event log: another one's offsets would be taken for old ones."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store.connect import connect as connect_store
from feature_store.interface import FeatureStore, GuardedWrite, RowKey
from models.schema import SOURCE
from services import installation
from services.common.settings import Settings
from services.event_log import topics
from services.event_log.connect import connect as connect_log
from services.feedback.source import OtherLog, claim

NOW_MS = 1_800_000_000_000


def settings_of(folder: Path, log: str = "events") -> Settings:
    return Settings(
        feature_store={"url": f"lmdb://{folder}/features", "lmdb_map_size_mb": 16},  # type: ignore[arg-type]
        event_log={"url": f"log://{folder}/{log}"},  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[FeatureStore]:
    url = settings.feature_store.url
    with contextlib.closing(connect_store(url, timeout_ms=50, lmdb_map_size_mb=16)) as store:
        yield store


def claimed(settings: Settings, store: FeatureStore) -> None:
    with contextlib.closing(connect_log(settings.event_log)) as event_log:
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
            OtherLog, match=r"/features were made .*/moved .*Empty the feature store"
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
