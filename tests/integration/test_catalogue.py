"""The feed of items over gRPC, and `tandem items`: what is refused, what is taken, what is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from models.schema import lock
from protos.tandem.v1 import catalogue_pb2 as pb
from protos.tandem.v1.catalogue_pb2_grpc import CatalogueStub
from protos.tandem.v1.records_pb2 import FieldValue, Numbers, Texts
from services import ask_cli, cli
from services.catalogue.follower import catalogue_now
from services.catalogue.main import BuildingServer, builder_of
from services.common.discovery import announced, replica_folder
from services.common.settings import Settings
from services.event_log.connect import connect
from tests.items_domain import DECLARATION, T0, YAML

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "schema.yaml").write_text(YAML)
    lock.write(tmp_path / lock.NAME, lock.Lock().with_(DECLARATION))
    return Settings(
        run_dir=tmp_path / "run",
        schema_file=tmp_path / "schema.yaml",
        catalogue={"port": 0, "metrics_port": 0, "drain_s": 1},  # type: ignore[arg-type]
        event_log={"url": f"log://{tmp_path}/events"},  # type: ignore[arg-type]
    )


@contextlib.asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[CatalogueStub]:
    log = connect(settings.event_log, None)
    builder = builder_of(settings, log)
    assert builder.lead(threading.Event())
    server = BuildingServer(settings, builder)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield CatalogueStub(channel)
    await server.drain()
    log.close()


@pytest.fixture
async def stub(settings: Settings) -> AsyncIterator[CatalogueStub]:
    async with served(settings) as connected:
        yield connected


def item(item_id: str, at: int = 0, **fields: Any) -> pb.Item:
    return pb.Item(item_id=item_id, fields=fields, updated_ms=at)


def number(value: float) -> FieldValue:
    return FieldValue(number=value)


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is INVALID
    return refused.value.details() or ""


async def test_items_are_brought_changed_and_taken_out(
    stub: CatalogueStub, settings: Settings
) -> None:
    answer = await stub.UpsertItems(
        pb.ItemsRequest(items=[item("a", T0, price=number(2)), item("b", T0)])
    )
    assert (answer.changed, answer.stale, answer.unknown) == (2, 0, 0)
    answer = await stub.PatchItems(
        pb.ItemsRequest(
            items=[
                item("a", T0 + 5, title=FieldValue(text="A")),
                item("b", T0 - 5, price=number(1)),
                item("c", price=number(1)),
            ]
        )
    )
    assert (answer.changed, answer.stale, answer.unknown) == (1, 1, 1)
    assert list(answer.unknown_item_ids) == ["c"]
    answer = await stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["b", "d"]))
    assert (answer.changed, list(answer.unknown_item_ids)) == (1, ["d"])
    known = (await stub.GetItems(pb.GetItemsRequest(item_ids=["b", "none", "a"]))).items
    assert [(k.item.item_id, k.removed, k.item.updated_ms) for k in known] == [
        ("b", True, T0),
        ("a", False, T0),
    ]
    assert known[1].item.fields["title"].text == "A"
    assert known[1].item.fields["price"].number == 2
    for removed, expected in ((False, ["a"]), (True, ["a", "b"])):
        parts = stub.ExportItems(pb.ExportItemsRequest(removed=removed))
        assert [k.item.item_id async for part in parts for k in part.items] == expected


WRONG = {
    "items: has 0; give 1..1000": [],
    "items[0].item_id: is empty": [item("")],
    "items[1].item_id: is that of items[0], too": [item("a"), item("a")],
    "items[0].fields['prize']: is not declared in schema.yaml (did you mean price?)": [
        item("a", prize=number(1))
    ],
    "items[0].fields['price']: is a number: set `number`, not `text`": [
        item("a", price=FieldValue(text="9"))
    ],
    "items[0].fields['price']: is nan": [item("a", price=number(float("nan")))],
    "items[0].fields['released']: 1.7e+09 are no ms since 1970 (or are they s?)": [
        item("a", released=number(1.7e9))
    ],
    "items[0].fields['shape']: has 2 numbers; schema.yaml says 3": [
        item("a", shape=FieldValue(numbers=Numbers(values=[1, 2])))
    ],
    "items[0].fields['shape']: holds a number that is not finite": [
        item("a", shape=FieldValue(numbers=Numbers(values=[1, 2, float("inf")])))
    ],
    "items[0].fields['kinds']: is empty; give 1..256 bytes": [
        item("a", kinds=FieldValue(texts=Texts(values=["a", ""])))
    ],
    "items[0].fields['title']: has more than 10000 bytes": [
        item("a", title=FieldValue(text="x" * 10_001))
    ],
    "items[0].updated_ms: ": [item("a", int(time.time() * 1000) + 3_600_000)],
    "items[1].updated_ms: -1 is not in 0..": [item("a"), item("b", -1)],
}


@pytest.mark.parametrize("sentence", WRONG)
async def test_a_wrong_item_is_refused_by_name_and_its_batch_with_it(
    stub: CatalogueStub, sentence: str
) -> None:
    said = await refusal(stub.UpsertItems(pb.ItemsRequest(items=WRONG[sentence])))
    assert said.startswith(sentence), said
    parts = stub.ExportItems(pb.ExportItemsRequest(removed=True))
    assert [part async for part in parts] == []


async def test_a_patch_without_a_field_is_refused(stub: CatalogueStub) -> None:
    said = await refusal(stub.PatchItems(pb.ItemsRequest(items=[item("a")])))
    assert said == "items[0].fields: is empty: name the fields that change"


async def test_a_stream_is_taken_up_to_the_batch_that_is_refused(stub: CatalogueStub) -> None:
    good = [
        pb.ChangeItemsRequest(upsert=pb.ItemsRequest(items=[item("a", T0), item("b", T0)])),
        pb.ChangeItemsRequest(patch=pb.ItemsRequest(items=[item("a", price=number(3))])),
        pb.ChangeItemsRequest(remove=pb.RemoveItemsRequest(item_ids=["b"])),
    ]
    answer = await stub.ChangeItems(iter(good))
    assert answer.changed == 4
    for wrong, sentence in (
        (pb.ChangeItemsRequest(), "kind: is not set"),
        (pb.ChangeItemsRequest(upsert=pb.ItemsRequest()), "items: has 0"),
    ):
        call = stub.ChangeItems(iter([good[1], wrong, good[2]]))
        said = await refusal(call)
        assert said.startswith(sentence)
        assert ("tandem-taken-changes", "1") in [tuple(m) for m in await call.trailing_metadata()]


def some_message(draw: random.Random) -> pb.ItemsRequest:
    """Anything that a client may send."""
    values = [
        FieldValue(),
        FieldValue(text=draw.choice(["", "a", "\x00", "é" * 200, "x" * draw.randint(0, 20_000)])),
        number(draw.choice([0.0, -1.0, 1e40, float("nan"), float("-inf"), T0])),
        FieldValue(flag=draw.random() < 0.5),
        FieldValue(texts=Texts(values=["a"] * draw.randint(0, 1_200))),
        FieldValue(numbers=Numbers(values=[draw.choice([1.0, float("nan"), 1e39])] * 3)),
    ]
    names = [*DECLARATION.item_field, *DECLARATION.display, "", "nothing", "é"]
    return pb.ItemsRequest(
        items=[
            pb.Item(
                item_id=draw.choice(["", "a", "b", "x" * 300, "\x00", "ü"]),
                updated_ms=draw.choice([0, T0, -5, 2**62]),
                fields={draw.choice(names): draw.choice(values)},
            )
            for _ in range(draw.randint(0, 3))
        ]
    )


async def test_ten_thousand_odd_messages_are_each_taken_or_refused_by_the_fields_name(
    stub: CatalogueStub, settings: Settings
) -> None:
    draw, outcomes = random.Random(1), {"taken": 0, "refused": 0}

    async def send(count: int) -> None:
        for _ in range(count):
            method = draw.choice([stub.UpsertItems, stub.PatchItems])
            refused: grpc.aio.AioRpcError | None = None
            try:
                await method(some_message(draw))
            except grpc.aio.AioRpcError as error:
                refused = error
            if refused is not None:
                assert refused.code() is INVALID, refused.details()
                assert (refused.details() or "").startswith("items"), refused.details()
            outcomes["taken" if refused is None else "refused"] += 1

    await asyncio.gather(*(send(500) for _ in range(20)))
    assert min(outcomes.values()) > 100, outcomes
    answer = await stub.UpsertItems(pb.ItemsRequest(items=[item("last")]))
    assert answer.changed == 1


# The command


@pytest.fixture
def running(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """The role in a process of its own; the command finds it."""
    for name, value in {
        "RUN_DIR": settings.run_dir,
        "SCHEMA_FILE": settings.schema_file,
        "EVENT_LOG__URL": settings.event_log.url,
        "CATALOGUE__PORT": 0,
        "CATALOGUE__METRICS_PORT": 0,
    }.items():
        monkeypatch.setenv(f"TANDEM_{name}", str(value))
    with catalogue_process(settings, tmp_path):
        yield settings


@contextlib.contextmanager
def catalogue_process(settings: Settings, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    output = tmp_path / "catalogue.txt"
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "serve", "catalogue"],
            env=os.environ, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while process.pid not in {
            entry.pid for entry in announced(replica_folder(settings.run_dir, "catalogue"))
        }:
            assert time.monotonic() < deadline, output.read_text()
            assert process.poll() is None, output.read_text()
            time.sleep(0.02)  # between two looks
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def tandem(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["items", *arguments])
    assert result.exit_code == code, result.output + result.stderr
    return " ".join((result.stdout if code == 0 else result.stderr).split())


def write(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


A = {
    "item_id": "a", "title": "A", "brand": "x", "colour": "red", "kinds": ["a", "b"],
    "price": 2.5, "released": "2024-05-01T00:00:00Z", "in_stock": True, "about": "some words",
    "shape": [1.0, 0.1, -2.0], "sizes": [3.0, 4.0],
}  # fmt: skip


def test_a_file_and_the_catalogue_become_equal_and_an_export_changes_nothing(
    running: Settings, tmp_path: Path
) -> None:
    many = [{"item_id": f"i{n}", "price": n} for n in range(30)]
    file = write(tmp_path / "items.jsonl", A, *many)
    assert tandem("sync", file) == "31 new, 0 changed, 0 removed, 0 as they were"
    assert tandem("sync", file) == "0 new, 0 changed, 0 removed, 31 as they were"
    for name in ("out.jsonl", "out.parquet"):
        assert tandem("export", str(tmp_path / name)).endswith("31 items")
        assert tandem("sync", str(tmp_path / name)).endswith("31 as they were")
    changed = write(tmp_path / "less.jsonl", A, {"item_id": "i0", "price": 7}, *many[2:])
    said = tandem("sync", changed, "--most-removed", "0.01", code=1)
    assert "lacks 1 of the 31 items" in said
    assert tandem("sync", changed) == "0 new, 1 changed, 1 removed, 29 as they were"
    assert tandem("upsert", file) == "1 new, 1 changed, 29 as they were"
    with contextlib.closing(connect(running.event_log, None)) as log:
        items = catalogue_now(running, log).items
    assert (len(items), int(items.removed.sum())) == (31, 0)


def test_items_are_changed_by_hand(running: Settings, tmp_path: Path) -> None:
    tandem("upsert", write(tmp_path / "items.jsonl", A))
    assert tandem("set", "a", "price=3.5", "kinds=c|d", "title=", "about=") == "changed"
    got = json.loads(tandem("get", "a"))
    assert (got["price"], got["kinds"], got["brand"]) == (3.5, ["c", "d"], "x")
    assert {"title", "about"}.isdisjoint(got)
    assert "no item of the catalogue: 'b'" in tandem("get", "a", "b", code=1)
    assert tandem("remove", "a") == "1 removed"
    assert json.loads(tandem("get", "a"))["removed"] is True
    assert "no item of the catalogue: 'b'" in tandem("remove", "b", code=1)
    assert "no item of the catalogue: 'b'" in tandem("set", "b", "price=1", code=1)
    assert "did you mean price?" in tandem("set", "a", "prize=1", code=1)
    assert "is no finite number" in tandem("set", "a", "price=cheap", code=1)
    assert "INVALID" not in tandem("export", str(tmp_path / "no.csv"), code=1)
    assert "is no share" in CliRunner().invoke(
        cli.app, ["items", "sync", "x.csv", "--most-removed", "many"]
    ).stderr.replace("\n", " ")


def test_items_are_shown_by_their_first_text(
    running: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tandem("upsert", write(tmp_path / "items.jsonl", A, {"item_id": "b", "price": 1}))
    assert ask_cli._shown(running, ["a", "b", "z"]) == ("title", {"a": "A"})
    elsewhere = running.model_copy(update={"run_dir": tmp_path / "elsewhere"})
    assert ask_cli._shown(elsewhere, ["a"]) == ("", {})


def test_a_catalogue_that_was_killed_goes_on_where_it_was(
    running: Settings, tmp_path: Path
) -> None:
    tandem("upsert", write(tmp_path / "one.jsonl", A))
    for entry in announced(replica_folder(running.run_dir, "catalogue")):
        os.kill(entry.pid, signal.SIGKILL)
    with catalogue_process(running, tmp_path):
        assert json.loads(tandem("get", "a"))["price"] == 2.5
        assert tandem("set", "a", "price=4") == "changed"


def test_without_a_catalogue_the_command_says_what_to_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_RUN_DIR", str(settings.run_dir))
    monkeypatch.setenv("TANDEM_SCHEMA_FILE", str(settings.schema_file))
    said = tandem("get", "a", "--address", "127.0.0.1:1", code=1)
    assert "does `tandem serve` run" in said
