"""An owner's folder from nothing to a trained model: each step answers, or says what to bring."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from feature_store.interface import RowKey
from models import artifact
from models.catalogue import ItemTable
from models.data.own.imports import Options, import_file
from models.data.own.tables import tables
from models.data.worlds.recipes import example
from models.schema.progress import SOURCE
from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1.records_pb2 import NO_MODEL, FeedbackEvent
from services import cli, first_start, installation
from services.common import telemetry
from services.common.schema import schema_of
from services.common.settings import Settings
from services.event_log.connect import connect
from services.feedback.rebuild import rebuild_all
from services.feedback.store_log import advance, open_store
from tests.artifacts import SMALL, built, publish
from tests.integration.conftest import InProcess, running
from tests.integration.updating import append

NOW_MS = 1_790_000_000_000
QUICK = {"ranking": {"counters_refresh_s": 0.05, "artifact_poll_s": 0.05, "models": ["masknet"]}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example's folder, nothing imported; commands run in it."""
    # Commands run in this process: of what they set nothing may stay for later tests.
    monkeypatch.setattr(telemetry, "configure_logging", lambda *settings: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    example.write(tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    (tmp_path / "shop" / "tandem.yaml").write_text(
        yaml.safe_dump(
            {
                "schema_file": "schema.yaml",
                "router": {
                    "port": 0, "metrics_port": 0, "deadline_ms": 5_000,
                    "hydrate_ms": 2_000, "retrieve_ms": 2_000, "rank_ms": 2_000,
                    "experiments_reload_s": 0.05,
                },
                "candidate_generation": {"artifact_poll_s": 0.05},
                "feature_store": {"lmdb_map_size_mb": 64},
                "event_log": {"partitions": 2},
                **QUICK,
            }
        )
    )  # fmt: skip
    yield tmp_path / "shop"
    for number, handler in handlers.items():
        signal.signal(number, handler)


def bring(folder: Path, *names: Any, rows: int | None = None) -> None:
    """Import the example's files, or their first rows."""
    for name in names:
        file = folder / f"{name}.csv"
        if rows is not None:
            kept = file.read_text().splitlines(keepends=True)[: 1 + rows]
            file = folder / f"some-{name}.csv"
            file.write_text("".join(kept))
        import_file(name, file, folder, Options(), NOW_MS)


def start(settings: Settings) -> list[str]:
    """What `tandem serve` does before it starts processes; what it says."""
    said: list[str] = []
    first_start.check_folder(settings)
    first_start.first_models(settings, said.append)
    first_start.first_items(settings, lambda line: None)
    installation.check_models(settings)
    first_start.first_features(settings, said.append)
    installation.check_source(settings)
    return said


async def ask(subject: InProcess, user: str, items: int = 10) -> pb.RecommendResponse:
    request = pb.RecommendRequest(user_id=user, surface="home", num_items=items, explain=True)
    return await subject.stub.Recommend(request, timeout=20)


async def test_items_alone_are_served_at_once_and_the_first_model_needs_no_restart(
    folder: Path,
) -> None:
    bring(folder, "items")
    settings = Settings.load()
    (said,) = start(settings)
    assert "80 items are served by what is new" in said
    schema = schema_of(settings)
    async with running(settings) as subject:
        answer = await ask(subject, "anybody")
        assert [item.item_id for item in answer.items] == [f"r{i:03d}" for i in range(10)]
        assert list(answer.degradations) == [NO_MODEL]
        assert {item.reason.source for item in answer.items} == {"cold_start"}

        cooked = FeedbackEvent(
            event_id="1", user_id="ana", item_id="r001", event="open",
            event_time_ms=int(time.time() * 1000),
        )  # fmt: skip
        await subject.stub.RecordFeedback(pb.RecordFeedbackRequest(events=[cooked]), timeout=20)
        liked = [item.item_id for item in (await ask(subject, "ana", 6)).items]
        assert "r001" not in liked
        assert all(int(item[1:]) % 4 == 1 or int(item[1:]) % 5 == 0 for item in liked), "thai"

        events = [opened(f"u{i}", "r070") for i in range(30)]
        with contextlib.closing(connect(settings.event_log, None)) as log:
            append(log, events)
        rebuild_all(settings, None)

        async def first() -> str:
            return (await ask(subject, "anybody", 1)).items[0].item_id

        await eventually(first, "r070")

        own = tables(folder, ["items"])
        items = artifact.load_items(artifact.current(settings.artifacts_dir, "masknet"), schema)
        assert len(items) == own.items.collect().height
        for name in ("masknet", "ssl_two_tower"):
            model = built(name, items, schema=schema, **SMALL.get(name, {}))
            publish(settings.artifacts_dir, name, model, items, schema)

        async def degraded() -> list[int]:
            return list((await ask(subject, "anybody")).degradations)

        await eventually(degraded, [])
        assert (await ask(subject, "anybody")).items[0].reason.source == "ssl_two_tower"
    assert start(settings) == [], "what is trained is left alone"
    bring(folder, "items", rows=3)
    assert start(settings) == []


async def eventually(seen: Callable[[], Any], wanted: object) -> None:
    """Ask until the answer is the wanted one."""
    deadline = time.monotonic() + 30.0
    while (found := await seen()) != wanted:
        assert time.monotonic() < deadline, found


def opened(user: str, item: str, time_ms: int = 0) -> FeedbackEvent:
    now_ms = int(time.time() * 1000)
    return FeedbackEvent(
        event_id=uuid.uuid4().hex, user_id=user, item_id=item, event_type=2,
        event_time_ms=time_ms or now_ms,
    )  # fmt: skip


def test_items_imported_later_are_served_as_long_as_nothing_is_trained(folder: Path) -> None:
    bring(folder, "items", rows=5)
    settings = Settings.load()
    assert len(start(settings)) == 1
    before = artifact.current(settings.artifacts_dir, "masknet")
    assert start(settings) == []
    assert artifact.current(settings.artifacts_dir, "masknet") == before
    bring(folder, "items")
    assert "80 items" in start(settings)[0]
    assert len(artifact.load_items(artifact.current(settings.artifacts_dir, "masknet"))) == 80


def rows(settings: Settings) -> dict[RowKey, bytes]:
    """Every row of users and items that the example's events make, with its checksum."""
    layout = schema_of(settings).layout
    of_user = (layout.given, layout.profile, layout.history, layout.user_delivery)
    of_item = (layout.counters, layout.item_delivery)
    keys = [RowKey(g.name, f"u{i}") for g in of_user for i in range(120)]
    keys += [RowKey(g.name, f"r{i:03d}") for g in of_item for i in range(80)]
    with contextlib.closing(open_store(settings)) as store:
        found = store.read(keys)
    return {key: row for key, row in zip(keys, found, strict=True) if row}


def test_a_new_store_begins_with_what_was_imported_and_one_in_use_is_left_alone(
    folder: Path,
) -> None:
    bring(folder, "items", "users", "events")
    settings = Settings.load()
    said = start(settings)
    assert any("200 users and items imported" in line for line in said)
    before = rows(settings)
    assert len(before) == 120 * 4 + 2 * len({k.entity_id for k in before if k.group == "counters"})
    assert start(settings) == []
    assert rows(settings) == before
    rebuild_all(settings, folder)
    assert rows(settings) == before, "made twice, byte by byte"
    (folder / "events.csv").write_text("user_id,item_id,event,time\nu1,r001,open,1770000000\n")
    bring(folder, "events")
    (line,) = start(settings)
    assert "`tandem features rebuild`" in line
    assert rows(settings) == before
    done = CliRunner().invoke(cli.app, ["features", "rebuild", "--yes"])
    assert done.exit_code == 0, done.stderr
    assert start(settings) == []
    assert rows(settings) != before


@pytest.mark.parametrize("named", [True, False])
def test_a_store_in_use_that_does_not_say_what_it_holds_is_left_alone(
    folder: Path, named: bool
) -> None:
    bring(folder, "items", "events")
    settings = Settings.load()
    first_start.first_models(settings, lambda _: None)
    first_start.first_items(settings, lambda _: None)
    installation.check_source(settings)
    with contextlib.closing(open_store(settings)) as store:
        advance(store, {0: 0}, NOW_MS)
        if not named:
            store.clear([SOURCE.name])
    said: list[str] = []
    first_start.first_features(settings, said.append)
    assert ["not known" in line and "`tandem features rebuild`" in line for line in said] == [True]
    assert rows(settings) == {}
    rebuild_all(settings, folder)
    assert start(settings) == []


def test_a_model_that_is_trained_while_its_cold_start_is_made_stays_current(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(folder, "items")
    settings = Settings.load()
    save, trained = ItemTable.save, []

    def saves(items: ItemTable, folder: Path) -> None:
        """A training of the model ends in the middle of it."""
        save(items, folder)
        if folder.parents[1].name == "masknet" and not trained:
            schema = schema_of(settings)
            trained.append("")
            model = built("masknet", items, schema=schema, **SMALL.get("masknet", {}))
            trained[0] = publish(settings.artifacts_dir, "masknet", model, items, schema)

    monkeypatch.setattr(ItemTable, "save", saves)
    (said,) = start(settings)
    assert "ssl_two_tower: 80 items" in said
    assert "masknet" not in said
    assert artifact.current(settings.artifacts_dir, "masknet").name == trained[0]
    versions = settings.artifacts_dir / "masknet" / "versions"
    assert [path.name for path in versions.iterdir()] == trained


def test_an_import_that_breaks_off_leaves_a_store_that_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(folder, "items", "events")
    settings = Settings.load()

    def breaks(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("services.feedback.backfill.write", breaks)
        with pytest.raises(KeyboardInterrupt):
            start(settings)
    with pytest.raises(first_start.EXPECTED, match="features rebuild"):
        start(settings)
    rebuild_all(settings, folder)
    assert start(settings) == []


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ((), "`tandem init NAME` writes one to begin from"),
        (("schema.yaml",), "no tandem.yaml that names it"),
        (("schema.yaml", "tandem.yaml", "experiments.yaml"), "`tandem import items FILE`"),
        (("schema.yaml", "tandem.yaml", "experiments.yaml", "events"), "`tandem import items FILE"),
        (("schema.yaml", "tandem.yaml", "experiments.yaml", "items", "few"), "at least 30 of each"),
    ],
    ids=lambda each: ",".join(each) if isinstance(each, tuple) else "",
)
def test_a_folder_that_lacks_something_says_what_to_bring(
    folder: Path, there: tuple[str, ...], words: str
) -> None:
    files = [file for file in folder.iterdir() if file.is_file()]
    if "few" in there:
        bring(folder, "events", rows=60)
    for name in {"items", "events"} & set(there):
        bring(folder, name)
    for file in files:
        if file.name not in there:
            file.unlink()
    if "few" not in there:
        for command in (["serve"], ["recommend", "--user", "anybody"]):
            done = CliRunner().invoke(cli.app, command)
            assert (done.exit_code, words in done.stderr) == (1, True), done.output + done.stderr
    if "tandem.yaml" in there or not there:
        done = CliRunner().invoke(cli.app, ["train", "all", "--data", "."])
        assert done.exit_code == 1
        said = " ".join(done.output.split())
        assert "`tandem i" in said or words in said
        assert len(said) < 500
        assert isinstance(done.exception, SystemExit)


def test_nothing_serves_here_is_said_where_everything_is_ready(folder: Path) -> None:
    bring(folder, "items")
    done = CliRunner().invoke(cli.app, ["recommend", "--user", "anybody"])
    assert done.exit_code == 1
    assert "`tandem serve` in another terminal" in done.stderr
