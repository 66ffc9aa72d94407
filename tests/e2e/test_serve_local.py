"""`tandem serve --local`: what Ray promises of replicas, without Ray."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import psutil
import pytest

from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from protos.tandem.v1.records_pb2 import Degradation
from services.common.discovery import announced, replica_folder
from tests.e2e.running import PATIENCE_S, Serve, wait_until

pytestmark = pytest.mark.e2e

WANTED = {"candidate_generation": 2, "ranking": 1}


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """An installation that serves, with the router's time limits wide."""
    serve = Serve(
        tmp_path_factory.mktemp("local"), "--local",
        **{f"TANDEM_{kind.upper()}__REPLICAS": str(n) for kind, n in WANTED.items()},
        TANDEM_ROUTER__DEADLINE_MS="4000",
        TANDEM_ROUTER__RETRIEVE_MS="2000",
        TANDEM_ROUTER__RANK_MS="2000",
        TANDEM_RAY__ADDRESS="127.0.0.1:1",  # which nobody may ask for
    )  # fmt: skip
    try:
        wait_until(lambda: "Tandem" in said(serve), "endpoints")  # printed when all is ready
        yield serve
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(PATIENCE_S) == 0, said(serve)
        assert serve.processes() == []
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


class Traffic:
    """One request after the other as long as the block runs; what they met is counted."""

    def __init__(self, serve: Serve) -> None:
        self._address = serve.address
        self._stop = asyncio.Event()
        self.whole = 0  # answers without a degradation
        self.degradations: Counter[str] = Counter()

    async def __aenter__(self) -> Traffic:
        self._asking = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop.set()
        await self._asking  # which raises what a request was refused with

    async def _ask(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub, number = RecommenderStub(channel), 0
            while not self._stop.is_set():
                number += 1
                request = RecommendRequest(user_id=f"u{number}", surface="home", num_items=5)
                answer = await stub.Recommend(request, timeout=10)
                assert len(answer.items) == 5
                self.degradations.update(map(Degradation.Name, answer.degradations))
                self.whole += not answer.degradations

    async def until(self, condition: Callable[[], object], what: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert not self._asking.done(), f"the traffic ended before {what}"
                await asyncio.sleep(0.02)  # between two looks

    async def more(self, answers: int) -> None:
        goal = self.whole + answers
        await self.until(lambda: self.whole >= goal, f"{answers} whole answers")


def test_as_many_processes_serve_as_the_settings_want_and_none_has_ray(serve: Serve) -> None:
    for kind, wanted in WANTED.items():
        assert len(replicas(serve, kind)) == wanted
    running = serve.processes()
    assert len(running) == 1 + sum(WANTED.values()) + len(("router", "updater", "experiments"))
    for process in running:
        assert not [m.path for m in process.memory_maps() if "/ray/" in m.path], process.cmdline()


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
