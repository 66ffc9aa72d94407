"""How much of the model's speed the ranking service delivers: rows/s at saturation, in one run.

`make bench-ranking`. A real replica (listener, batcher, feature rows, item table, counters) serves
a MaskNet of production shape with random weights; beside it, in a process of its own, the same
model scores prepared tensors of the batch size that the replica was seen to use, with the same
threads and precision. Both take turns, in float32 and in bfloat16.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import typer

from feature_store import codec
from load_tests.demo.metrics import scrape
from load_tests.serving.feeding import feed
from load_tests.serving.generator import LoadProcess, Target
from load_tests.serving.server_process import ServerProcess, server_process
from models import artifact
from models.catalogue import ItemTable
from models.data.worlds.films.schema import (
    CLICKS,
    GENRE_CLICKS,
    GENRE_SLOTS,
    HISTORY,
    HISTORY_LENGTH,
    ITEM_DTYPE,
    LIKES,
    PROFILE,
    SCHEMA,
)
from models.figures import console, median, print_machine, print_table, save
from models.serving import load_ranking
from models.training import phases, ranking
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.ranking_pb2 import RankRequest
from services.common.discovery import announced, replica_folder
from services.common.model_service.user_context import batch_of_users
from services.common.settings import (
    EventLogSettings,
    FeatureStoreSettings,
    RankingSettings,
    Settings,
)
from services.ranking.deployment import autocast, start_replica

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ITEMS, USERS, CANDIDATES = 10_000, 256, 200
METHOD = "/tandem.v1.Ranking/Rank"


# The world.


@cache
def items() -> ItemTable:
    draw = np.random.default_rng(1)
    features = np.zeros(ITEMS, ITEM_DTYPE)
    features["year"] = draw.integers(1950, 2020, ITEMS)
    features["genres"][:, :3] = draw.integers(1, GENRE_SLOTS, (ITEMS, 3))
    clicks = np.sort(draw.integers(0, 5_000, ITEMS))[::-1]
    counts = np.stack([clicks, np.zeros_like(clicks)], axis=1)
    return ItemTable.build([str(i) for i in range(1, ITEMS + 1)], features, counts)


@cache
def requests() -> list[RankRequest]:
    """One per user: a full history, and candidates drawn from the catalogue."""
    draw = np.random.default_rng(2)
    now_ms = int(time.time() * 1000)
    made = []
    for user in range(USERS):
        profile, history = PROFILE.defaults(), HISTORY.defaults()
        profile[CLICKS], profile[LIKES], profile["last_event_ms"] = 150, 60, now_ms
        profile[GENRE_CLICKS] = draw.random(GENRE_SLOTS)
        history["length"] = HISTORY_LENGTH
        history["item_keys"] = items().keys[draw.integers(1, ITEMS + 1, HISTORY_LENGTH)]
        history["event_times_ms"] = now_ms
        history["event_ids"] = draw.integers(2, 4, HISTORY_LENGTH)
        rows = draw.choice(np.arange(1, ITEMS + 1), CANDIDATES, replace=False)
        context = UserContext(
            user_id=f"user-{user}",
            now_ms=now_ms,
            profile_row=codec.encode(PROFILE, profile, now_ms, 1),
            history_row=codec.encode(HISTORY, history, now_ms, 1),
        )
        made.append(RankRequest(user=context, item_keys=items().keys[rows].tobytes()))
    return made


@cache
def _serialized() -> list[bytes]:
    return [request.SerializeToString() for request in requests()]


def traffic(i: int) -> tuple[str, bytes]:
    return METHOD, _serialized()[i % USERS]


def publish(folder: Path) -> None:
    model = phases.build("masknet", ranking.model_config(SCHEMA, items()), 0, "cpu")
    artifact.publish(
        folder / "artifacts",
        "masknet",
        tensors=model.state_dict(),
        config={"model": "masknet", "parameters": model.config()},
        reads=model.reads,
        declaration=SCHEMA.declaration,
        items=items(),
        metrics={},
        data_window={},
    )
    feed(replica_settings(folder, "float32", 1), items())


# The two sides.


def replica_settings(folder: Path, precision: Precision, threads: int) -> Settings:
    return Settings(
        run_dir=folder / precision,
        artifacts_dir=folder / "artifacts",
        ranking=RankingSettings(models=("masknet",), precision=precision, threads=threads),
        feature_store=FeatureStoreSettings(url=f"lmdb://{folder}/features", lmdb_map_size_mb=64),
        event_log=EventLogSettings(url=f"log://{folder}/events"),
    )


@asynccontextmanager
async def replica(folder: Path, precision: Precision, threads: int) -> AsyncIterator[str]:
    hosted = await start_replica(replica_settings(folder, precision, threads))
    yield hosted.address
    await hosted.drain()


def bare_rows_per_s(
    folder: Path, precision: Precision, threads: int, users: int, seconds: float
) -> float:
    """Rows/s of the model alone on batches of `users` requests, all tensors prepared."""
    torch.set_num_threads(threads)
    loaded = _loaded(folder)
    chosen = requests()[:users]
    read = loaded.model.reads.history
    batch = batch_of_users([request.user for request in chosen], SCHEMA, loaded.items, read)
    keys = np.concatenate([np.frombuffer(request.item_keys, "<u8") for request in chosen])
    rows = torch.from_numpy(loaded.items.index_of(keys))
    row_user = torch.repeat_interleave(torch.arange(users), CANDIDATES)
    counters = torch.zeros(len(rows), len(loaded.model.counters))
    batches = 0
    with torch.inference_mode(), autocast(precision, torch.device("cpu")):
        for _ in range(3):
            loaded.model.score(loaded.model.user_part(batch), row_user, rows, counters)
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            loaded.model.score(loaded.model.user_part(batch), row_user, rows, counters)
            batches += 1
    return batches * len(rows) / elapsed


@cache
def _loaded(folder: Path) -> Any:
    return load_ranking(artifact.current(folder / "artifacts", "masknet"))


# The run.


def batched(run_dir: Path) -> tuple[float, float]:
    """How many rows a replica has scored so far, and in how many batches."""
    (entry,) = announced(replica_folder(run_dir, "ranking"))
    metrics = scrape(entry.metrics)
    assert metrics is not None, f"no metrics at {entry.metrics}"
    return (
        metrics.value("tandem_batch_rows_sum", service="ranking"),
        metrics.value("tandem_batch_rows_count", service="ranking"),
    )


def main(rounds: int = 5, seconds: float = 4.0, in_flight: int = 16, threads: int = 1) -> None:
    print_machine()
    measured: dict[Precision, list[dict[str, float]]] = {p: [] for p in PRECISIONS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-bench-")))
        publish(folder)
        servers: dict[Precision, ServerProcess] = {
            p: stack.enter_context(server_process(replica, folder, p, threads)) for p in PRECISIONS
        }
        load = stack.enter_context(LoadProcess())
        bare = stack.enter_context(
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        )
        console.print(
            f"{CANDIDATES} candidates per request, {in_flight} in flight, {threads} thread(s),"
            f" {rounds} rounds of {seconds:g} s per side"
        )
        for i in range(rounds + 1):  # the first round warms up
            for precision in PRECISIONS if i % 2 else reversed(PRECISIONS):
                server = servers[precision]
                rows_before, batches_before = batched(folder / precision)
                before = server.cpu_s()
                result = load.closed_loop(
                    Target(server.address, traffic), in_flight, seconds=seconds
                )
                used = server.cpu_s() - before
                rows, batches = batched(folder / precision)
                rows = (rows - rows_before) / max(batches - batches_before, 1)
                users = max(round(rows / CANDIDATES), 1)
                model = bare.submit(
                    bare_rows_per_s, folder, precision, threads, users, seconds
                ).result()
                service = result.per_second * CANDIDATES
                measured[precision].append(
                    {
                        "service_rows_per_s": service,
                        "model_rows_per_s": model,
                        "ratio": service / model,
                        "rows_per_batch": rows,
                        "replica_cores_busy": used / result.seconds,
                    }
                )
    figures = {
        precision: {key: median(run[key] for run in runs[1:]) for key in runs[0]}
        for precision, runs in measured.items()
    }
    print_table(
        f"closed loop at saturation, medians of {rounds} interleaved rounds",
        ["precision", *(key.replace("_", " ") for key in figures["float32"])],
        [
            [p, *(f"{v:,.0f}" if v > 20 else f"{v:.2f}" for v in row.values())]
            for p, row in figures.items()
        ],
    )
    faster = figures["bfloat16"]["model_rows_per_s"] / figures["float32"]["model_rows_per_s"]
    console.print(f"bfloat16 over float32, the model alone: {faster:.2f}")
    save("bench_ranking", {"precisions": figures, "bfloat16_over_float32": faster})


if __name__ == "__main__":
    typer.run(main)
