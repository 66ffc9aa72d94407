"""What every host of replicas promises: plain processes (`tandem serve --local`), and Ray Serve."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from protos.tandem.v1.records_pb2 import Degradation
from services.common.discovery import announced, replica_folder
from tests.e2e.running import PATIENCE_S, Background, Serve, wait_until

pytestmark = pytest.mark.e2e

WANTED = {"candidate_generation": 2, "ranking": 1}


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def host(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def serve(host: str) -> Iterator[Serve]:
    """An installation that serves, with the router's time limits wide: what is tested is that
    nothing is lost, not that a machine is fast which starts replicas meanwhile."""
    settings = {f"TANDEM_{kind.upper()}__REPLICAS": str(n) for kind, n in WANTED.items()}
    settings["TANDEM_ROUTER__DEADLINE_MS"] = "40000"
    settings |= {f"TANDEM_ROUTER__{call}_MS": "20000" for call in ("HYDRATE", "RETRIEVE", "RANK")}
    options: tuple[str, ...] = ()
    if host == "local":
        options = ("--local",)
        settings["TANDEM_RAY__ADDRESS"] = "127.0.0.1:1"  # which nobody may ask for
    with tempfile.TemporaryDirectory() as folder:  # of a short path: Ray's sockets lie below
        serve = Serve(Path(folder), *options, **settings)
        try:
            wait_until(lambda: "Tandem" in said(serve), "endpoints")  # printed when all is ready
            yield serve
            serve.process.send_signal(signal.SIGTERM)
            assert serve.process.wait(PATIENCE_S) == 0, said(serve)
            wait_until(lambda: not serve.processes(), "the end of all processes")
            assert "role_killed" not in said(serve)
            assert [*serve.run_dir.glob("replicas/*/*")] == []
        finally:
            serve.clean_up()


def said(serve: Serve) -> str:
    text = serve.output.read_text()
    assert serve.process.poll() in (None, 0), text
    return text


def replicas(serve: Serve, kind: str) -> set[int]:
    """The pids of the announced replicas."""
    return {entry.pid for entry in announced(replica_folder(serve.run_dir, kind))}


class Traffic(Background):
    """One request after the other as long as the block runs; what they met is counted."""

    def __init__(self, serve: Serve) -> None:
        self._address = serve.address
        self._stop = asyncio.Event()
        self.whole = 0  # answers without a degradation
        self.degradations: Counter[str] = Counter()

    async def __aenter__(self) -> Traffic:
        self._going = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop.set()
        await self._going  # which raises what a request was refused with

    async def _ask(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub, number = RecommenderStub(channel), 0
            while not self._stop.is_set():
                number += 1
                request = RecommendRequest(user_id=f"u{number}", surface="home", num_items=5)
                answer = await stub.Recommend(request, timeout=60)
                assert len(answer.items) == 5
                self.degradations.update(map(Degradation.Name, answer.degradations))
                self.whole += not answer.degradations

    async def more(self, answers: int) -> None:
        goal = self.whole + answers
        await self.until(lambda: self.whole >= goal, f"{answers} whole answers")


def test_as_many_replicas_serve_as_the_settings_want(serve: Serve) -> None:
    for kind, wanted in WANTED.items():
        assert len(replicas(serve, kind)) == wanted


def has_ray(process: psutil.Process) -> bool:
    return any("/ray/" in m.path for m in process.memory_maps())


def test_ray_is_loaded_where_it_hosts_and_nowhere_else(serve: Serve, host: str) -> None:
    hosted = set[int]().union(*(replicas(serve, kind) for kind in WANTED))
    if host == "ray":
        assert all(has_ray(psutil.Process(pid)) for pid in hosted)
        return
    running = serve.processes()
    assert not any(map(has_ray, running))
    roles = "router", "updater", "experiments", "catalogue"
    assert len(running) == 1 + len(hosted) + len(roles)


@pytest.mark.parametrize(
    ("kind", "degraded"), [("ranking", "UNRANKED"), ("candidate_generation", "POPULAR_FALLBACK")]
)
async def test_a_killed_replica_costs_no_answer_and_comes_back(
    serve: Serve, kind: str, degraded: str
) -> None:
    old = replicas(serve, kind)
    async with Traffic(serve) as traffic:
        await traffic.more(20)
        assert not traffic.degradations
        killed = psutil.Process(min(old))
        killed.kill()
        if WANTED[kind] == 1:
            await traffic.until(lambda: traffic.degradations[degraded], "a degraded answer")

        def replaced() -> bool:
            now = replicas(serve, kind)
            return len(now) == WANTED[kind] and bool(now - old)

        await traffic.until(replaced, "a new replica")
        await traffic.more(20)
    assert set(traffic.degradations) <= {degraded}
    assert not killed.is_running()
