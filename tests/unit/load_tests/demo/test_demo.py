"""What the demo does before anything runs: its folder, its settings, the filled feature store."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_store.connect import connect
from feature_store.interface import RowKey
from load_tests.demo.data import backfill
from load_tests.demo.folder import DemoError, Urls, check_log_empty, demo_folder, with_stores
from models.catalogue import item_key
from models.data.backfill import FeatureState, Interaction, values_by_key
from models.data.worlds.films.schema import (
    CLICK,
    COUNTERS,
    FOLD,
    GROUPS,
    HISTORY,
    IMPRESSION,
    LIKE,
    PROFILE,
)
from services.common.processes.alone import AlreadyRuns
from services.common.settings import EventLogSettings, FeatureStoreSettings, Settings
from services.event_log.connect import connect as connect_log
from services.event_log.interface import Record
from services.feedback.backfill import NotEmpty
from tests.artifacts import small_items
from tests.served import serve_one

NOW_MS = 1_800_000_000_000


def test_the_folder_is_empty_again_for_every_run(tmp_path: Path) -> None:
    with demo_folder(tmp_path) as folder:
        (folder / "features").mkdir()
        (folder / "features" / "data.mdb").write_text("old")
        (folder / "summary.json").write_text("{}")
    with demo_folder(tmp_path) as again:
        assert again == folder
        assert [path.name for path in again.iterdir()] == [".tandem-demo"]


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "demo" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(DemoError, match="TANDEM_RUN_DIR"), demo_folder(tmp_path):
        pass
    assert precious.read_text() == "mine"


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        demo_folder(tmp_path) as folder,
        pytest.raises(AlreadyRuns, match="TANDEM_RUN_DIR"),
        demo_folder(tmp_path),
    ):
        pass
    assert folder.is_dir()


def test_the_demo_is_embedded_unless_servers_are_named_for_it(tmp_path: Path) -> None:
    given = Settings(
        feature_store={"url": "redis://127.0.0.1:1/0", "timeout_ms": 7},  # type: ignore[arg-type]
        event_log={"url": "kafka://127.0.0.1:1"},  # type: ignore[arg-type]
    )
    settings = with_stores(given, tmp_path, Urls())
    assert settings.feature_store.url == f"lmdb://{tmp_path}/features"
    assert settings.event_log.url == f"log://{tmp_path}/events"
    assert settings.feature_store.timeout_ms == 7
    named = with_stores(given, tmp_path, Urls("redis://127.0.0.1:2/1", None))
    assert named.feature_store.url == "redis://127.0.0.1:2/1"
    assert named.event_log.url == f"log://{tmp_path}/events"


def test_nothing_of_somebody_elses_is_counted_or_overwritten(tmp_path: Path) -> None:
    store = FeatureStoreSettings(url=f"lmdb://{tmp_path}/features", lmdb_map_size_mb=16)
    events = EventLogSettings(url=f"log://{tmp_path}/events")
    settings = Settings(feature_store=store, event_log=events)
    log = connect_log(events, None)
    check_log_empty(settings)
    log.append("feedback", [Record(b"u", b"of another installation", NOW_MS)]).result()
    log.close()
    with pytest.raises(DemoError, match="'feedback' of the event log holds records"):
        check_log_empty(settings)
    with pytest.raises(DemoError, match="must be log://path or kafka://"):
        check_log_empty(Settings(event_log=EventLogSettings(url="nowhere://events")))
    items, state = small_items(2), FeatureState(FOLD)
    liked = Interaction("u", "m1", item_key("m1"), NOW_MS, (IMPRESSION, CLICK, LIKE))
    state.apply(liked, values_by_key(items, FOLD)[item_key("m1")])
    backfill(settings, items, state)
    with pytest.raises(NotEmpty):
        backfill(settings, items, state)


def test_the_store_serves_exactly_the_state_it_was_filled_with(tmp_path: Path) -> None:
    items = small_items(5)
    state, clicked = FeatureState(FOLD), (IMPRESSION, CLICK)
    for user, item, minute, kinds in (("u1", "m1", 1, (*clicked, LIKE)), ("u1", "m2", 2, clicked),
                                      ("u2", "m1", 3, clicked)):  # fmt: skip
        interaction = Interaction(user, item, item_key(item), NOW_MS + minute * 60_000, kinds)
        state.apply(interaction, values_by_key(items, FOLD)[item_key("m1")])
    settings = FeatureStoreSettings(url=f"lmdb://{tmp_path}/features", lmdb_map_size_mb=16)
    assert backfill(Settings(feature_store=settings), items, state) == 4

    store = connect(settings.url, GROUPS, installation=None, timeout_ms=50, lmdb_map_size_mb=16)
    try:
        wanted = {
            **{RowKey(PROFILE.name, u): s.profile for u, s in state.users.items()},
            **{RowKey(HISTORY.name, u): s.history for u, s in state.users.items()},
            **{
                RowKey(COUNTERS.name, items.ids[row]): state.items[int(items.keys[row])].counters
                for row in (1, 2)
            },
        }
        for key, row in zip(wanted, store.read(list(wanted)), strict=True):
            served = serve_one(GROUPS[key.group], row, NOW_MS + 3_600_000)
            assert served.record.tobytes() == wanted[key].tobytes(), key
    finally:
        store.close()
