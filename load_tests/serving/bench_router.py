"""What the router costs: requests/s of Recommend against a bare gRPC echo, measured in one run.

`make bench-router`. Three servers, each in its own process, take turns under the same load:

    echo      a bare grpc.aio server on asyncio's event loop that answers one prepared
              RecommendResponse
    memory    the real router (store, experiments, pipeline, event log), on uvloop as it is served;
              both model services answer from this process's memory
    loopback  the same router; both model services answer from memory behind real gRPC

`ratio to echo` is in requests/s, `cpu ratio` in the servers' processor time per request. The
router's stages are timed one by one before, and whole requests that show two rankings as one list.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import typer
import uvloop

from load_tests.serving.generator import LoadProcess, LoadResult, Target
from load_tests.serving.router_world import (
    CANDIDATES,
    NUM_ITEMS,
    SURFACES,
    USERS,
    PreparedAnswers,
    build_world,
    echo_server,
    judge,
    model_services,
    open_log,
    open_store,
    prepared_requests,
    request_of,
    router_server,
    surroundings,
    traffic,
)
from load_tests.serving.server_process import ServerProcess, server_process
from models.catalogue import ItemTable
from models.data.worlds.films.schema import SCHEMA
from models.figures import console, median, print_machine, print_table, save
from protos.tandem.v1.recommender_pb2 import RecommendResponse
from services.common.balancer import ReplicaSet
from services.common.validate import check_recommend
from services.event_log import topics
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.experiments.declare.domain import domain_of
from services.router.metrics import count
from services.router.pipeline import begin, recommend
from services.router.record import record_bytes
from services.router.request import RequestState
from services.router.surroundings import Surroundings

INTERLEAVING = b"""\
version: 1
layers:
  - name: models
    parameters: [ranking.model]
    experiments:
      - name: side_by_side
        interleave: team_draft
        arms:
          - {name: a, parameters: {ranking.model: masknet}}
          - {name: b, parameters: {ranking.model: mc_mlcc}}
"""


# The stages.


async def one_request(
    i: int, around: Surroundings
) -> tuple[RequestState, RecommendResponse, dict[str, float]]:
    """Request i answered and recorded in this process, and its times in µs by stage."""
    request = request_of(i % USERS)
    started = time.perf_counter()
    check_recommend(request, SURFACES)
    checked = time.perf_counter()
    state = begin(request, 1.0, around)
    response = await recommend(state, around)
    answered = time.perf_counter()
    count(state)
    counted = time.perf_counter()
    record_bytes(state)
    recorded = time.perf_counter()
    laps = {
        "check": checked - started,
        **{f"  {stage}": ms / 1000 for stage, ms in state.stage_ms.items()},
        "pipeline": answered - checked,
        "count": counted - answered,
        "record": recorded - counted,
    }
    return state, response, {stage: seconds * 1e6 for stage, seconds in laps.items()}


async def stage_costs(folder: Path, repetitions: int) -> tuple[dict[str, float], bytes]:
    """Median µs per stage of one request at a time, in this process; and one response."""
    event_log, store = open_log(folder / "stages"), open_store(folder)
    answers = cast("ReplicaSet", PreparedAnswers(ItemTable.load(folder)))
    around = surroundings(folder, store, answers, answers)
    costs: dict[str, list[float]] = {}
    for i in range(repetitions):
        state, response, laps = await one_request(i, around)
        assert state.shown is not None
        assert not state.shown.degradations
        for stage, us in laps.items():
            costs.setdefault(stage, []).append(us)
    assigner = Assigner(
        config_reader.parse(INTERLEAVING, "interleaving.yaml", domain_of(SCHEMA.declaration))
    )
    around = replace(around, assigner=lambda: assigner)
    for i in range(repetitions // 5):
        state, _, laps = await one_request(i, around)
        assert state.shown is not None
        assert state.shown.interleaving is not None
        for stage in ("pipeline", "record"):
            costs.setdefault(f"{stage}, interleaved", []).append(laps[stage])
    event_log.close()
    store.close()
    return {s: median(us) for s, us in costs.items()}, response.SerializeToString()


# The run.


def measure(
    load: LoadProcess, sides: dict[str, ServerProcess], in_flight: int, seconds: float
) -> dict[str, tuple[LoadResult, float]]:
    """One round: every side under the same load; its result and its processor seconds."""
    measured = {}
    for name, side in sides.items():
        before = side.cpu_s()
        target = Target(side.address, traffic, judge=judge)
        result = load.closed_loop(target, in_flight, seconds=seconds)
        measured[name] = result, side.cpu_s() - before
    return measured


def durable_records(folder: Path) -> int:
    log = open_log(folder)
    consumer = log.consumer(topics.DECISIONS, "bench")
    # The first poll assigns the partitions; until then there is no lag to speak of.
    records = len(consumer.poll(1, 1.0))
    records += consumer.lag().events
    consumer.close()
    log.close()
    return records


def main(
    rounds: int = 5, seconds: float = 4.0, in_flight: int = 16, repetitions: int = 5_000
) -> None:
    print_machine()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name:
        folder = Path(name)
        build_world(folder)
        stages, answer = asyncio.run(stage_costs(folder, repetitions))
        console.print(
            f"request {len(prepared_requests()[0])} B, response {len(answer)} B,"
            f" {CANDIDATES} candidates, {NUM_ITEMS} items; {in_flight} in flight,"
            f" {rounds} rounds of {seconds:g} s per side"
        )
        results: list[dict[str, tuple[LoadResult, float]]] = []
        with (
            server_process(echo_server, answer) as echo,
            server_process(router_server, folder, "log-memory", run=uvloop.run) as memory,
            server_process(model_services, folder) as models,
            server_process(
                router_server, folder, "log-loopback", models.address, run=uvloop.run
            ) as loopback,
            LoadProcess() as load,
        ):
            sides = {"echo": echo, "memory": memory, "loopback": loopback}
            warm_up = measure(load, sides, in_flight, 1.0)
            for i in range(rounds):
                order = dict(list(sides.items())[:: 1 if i % 2 else -1])
                results.append(measure(load, order, in_flight, seconds))
        recorded = {name: durable_records(folder / f"log-{name}") for name in list(sides)[1:]}
    figures = {}
    for name in sides:
        runs = [measured[name] for measured in results]
        figures[name] = {
            "requests_per_s": median(r.per_second for r, _ in runs),
            "ratio_to_echo": median(
                measured[name][0].per_second / measured["echo"][0].per_second
                for measured in results
            ),
            "cpu_us_per_request": median(1e6 * cpu / r.requests for r, cpu in runs),
            "cpu_ratio": median(
                echo_cpu / echo_run.requests * run.requests / cpu
                for (echo_run, echo_cpu), (run, cpu) in (
                    (measured["echo"], measured[name]) for measured in results
                )
            ),
            "p50_ms": median(r.percentile_ms(50) for r, _ in runs),
            "server_cores_busy": median(cpu / r.seconds for r, cpu in runs),
            "generator_cores_busy": median(r.cpu_s / r.seconds for r, _ in runs),
            "failed_or_degraded": sum(r.requests - r.outcomes["OK"] for r, _ in runs),
        }
        if name in recorded:
            answered = sum(r.outcomes["OK"] for r, _ in [*runs, warm_up[name]])
            figures[name]["records_missing"] = answered - recorded[name]
    print_table(
        f"closed loop, {in_flight} in flight, medians of {rounds} interleaved rounds",
        ["side", *(key.replace("_", " ") for key in figures["memory"])],
        [
            [name, *(f"{v:.2f}" if v < 20 and v % 1 else f"{v:,.0f}" for v in row.values())]
            for name, row in figures.items()
        ],
    )
    grpc_us = figures["echo"]["cpu_us_per_request"]
    print_table(
        f"CPU µs of one request at a time, in-process (nothing waits); median of {repetitions:,}",
        ["stage", "µs"],
        [[stage, f"{us:.1f}"] for stage, us in stages.items()],
    )
    own_us = sum(stages[s] for s in ("check", "pipeline", "count", "record"))
    console.print(
        f"own work {own_us:.0f} µs + bare gRPC {grpc_us:.0f} µs = {own_us + grpc_us:.0f} µs"
    )
    save("bench_router", {"sides": figures, "stages_us": stages})


if __name__ == "__main__":
    typer.run(main)
