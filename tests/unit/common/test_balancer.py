"""Calls go to replicas that serve, the least busy first, and a lost replica costs no call."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import grpc
import pytest

from protos.tandem.v1 import ranking_pb2 as pb
from protos.tandem.v1 import ranking_pb2_grpc
from services.common.balancer import NoReplica, ReplicaSet
from services.common.rpc import Refusal, rpc_method
from services.common.server import GrpcServer, Service
from tests.integration.conftest import until

NAME = "tandem.v1.Ranking"


class Ranker(ranking_pb2_grpc.RankingServicer):
    """Answers with its own name, or as told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.hold: asyncio.Event | None = None
        self.refuse: grpc.StatusCode | None = None
        self.cancelled = asyncio.Event()
        self.left_s = 0.0

    @rpc_method("test_ranking")
    async def Rank(self, request, context):
        self.calls += 1
        self.left_s = context.time_remaining()
        if self.refuse:
            raise Refusal(self.refuse, "as the test wants")
        if self.hold:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return pb.RankResponse(model_version=self.name)


class Discovered:
    """A discovery whose answer the test changes."""

    def __init__(self) -> None:
        self.now: frozenset[str] = frozenset()

    def __call__(self) -> frozenset[str]:
        return self.now


@asynccontextmanager
async def replicas(count: int):
    """`count` running rankers with their servers, and a balancer that sees them all serving."""
    rankers = [Ranker(str(i)) for i in range(count)]
    servers = []
    for ranker in rankers:
        service = Service(NAME, ranking_pb2_grpc.add_RankingServicer_to_server, ranker)
        servers.append(GrpcServer([service], "127.0.0.1", 0))
        await servers[-1].start()
    discovery = Discovered()
    discovery.now = frozenset(s.address for s in servers)
    subject = ReplicaSet(NAME, ranking_pb2_grpc.RankingStub, discovery, poll_s=0.02)
    await subject.start()
    await until(lambda: len(subject.serving) == count)
    yield subject, rankers, servers, discovery
    await subject.close()
    for server in servers:
        await server.stop()


async def rank(subject: ReplicaSet, timeout_s: float = 10.0) -> str:
    return (await subject.call("Rank", pb.RankRequest(), timeout_s)).model_version


async def test_a_busy_replica_gets_no_call_while_another_is_idle():
    async with replicas(2) as (subject, rankers, _, _):
        held = asyncio.Event()
        for ranker in rankers:
            ranker.hold = held
        first = asyncio.create_task(rank(subject))
        await until(lambda: sum(r.calls for r in rankers) == 1)
        second = asyncio.create_task(rank(subject))
        await until(lambda: [r.calls for r in rankers] == [1, 1])
        held.set()
        assert sorted(await asyncio.gather(first, second)) == ["0", "1"]


async def test_a_replica_that_hangs_gets_no_call_while_another_answers():
    async with replicas(2) as (subject, rankers, _, _):
        rankers[0].hold = asyncio.Event()
        answers = [asyncio.create_task(rank(subject, timeout_s=0.2)) for _ in range(20)]
        lost = [e for e in await asyncio.gather(*answers, return_exceptions=True) if e != "1"]
        assert len(lost) == rankers[0].calls == 10  # equals took turns; nobody knew yet
        assert subject.serving  # its health stream says that it serves, both do
        assert [await rank(subject, timeout_s=0.2) for _ in range(20)] == ["1"] * 20
        (hung,) = [r for r in subject._replicas.values() if r.timeouts]
        hung.suspect_until = 0.0  # its time is over
        assert await asyncio.gather(rank(subject, 0.2), return_exceptions=True) != ["1"]
        assert [await rank(subject, timeout_s=0.2) for _ in range(20)] == ["1"] * 20
        rankers[0].hold.set()
        rankers[0].hold = None
        hung.suspect_until = 0.0
        assert {await rank(subject) for _ in range(2)} == {"0", "1"}
        assert hung.timeouts == 0


async def test_a_replica_that_answers_or_refuses_others_meanwhile_is_late_and_not_suspected():
    async with replicas(1) as (subject, rankers, _, _):
        (replica,) = subject._replicas.values()
        for refuse in (None, grpc.StatusCode.RESOURCE_EXHAUSTED):
            sent_s = time.monotonic()
            rankers[0].refuse = refuse
            await asyncio.gather(rank(subject), return_exceptions=True)
            for _ in range(5):
                replica.ran_out_of_time(sent_s, sent_s + 0.2)
            assert (replica.timeouts, replica.suspect_until) == (0, 0.0)
        for _ in range(3):
            sent_s = time.monotonic()
            replica.ran_out_of_time(sent_s, sent_s + 0.2)
        assert replica.suspect_until == sent_s + 1.2


async def test_a_service_hangs_when_nothing_comes_from_any_of_its_replicas_though_asked():
    async with replicas(2) as (subject, _, _, _):
        one, other = subject._replicas.values()
        sent_s = time.monotonic()
        one.ran_out_of_time(sent_s, sent_s + 0.2)
        assert not subject.hangs(sent_s + 60)
        other.ran_out_of_time(sent_s + 0.5, sent_s + 0.7)
        assert not subject.hangs(sent_s + 1.4)
        assert subject.hangs(sent_s + 1.6)
        await rank(subject)
        assert not subject.hangs(sent_s + 60)


async def test_the_only_replica_is_asked_however_suspect():
    async with replicas(1) as (subject, rankers, _, _):
        rankers[0].hold = asyncio.Event()
        for _ in range(4):
            with pytest.raises(grpc.aio.AioRpcError):
                await rank(subject, timeout_s=0.06)
        rankers[0].hold.set()
        assert await rank(subject) == "0"


async def test_equals_take_turns():
    async with replicas(3) as (subject, rankers, _, _):
        for _ in range(9):
            await rank(subject)
        assert [r.calls for r in rankers] == [3, 3, 3]


async def test_a_dead_replica_costs_no_call():
    async with replicas(2) as (subject, _, servers, _):
        await servers[0].stop()
        assert [await rank(subject) for _ in range(5)] == ["1"] * 5


async def test_without_a_serving_replica_the_caller_is_told_at_once():
    async with replicas(1) as (subject, _, servers, discovery):
        discovery.now = frozenset()
        await until(lambda: not subject.serving)
        with pytest.raises(NoReplica):
            await rank(subject)
        discovery.now = frozenset({servers[0].address})
        await until(lambda: len(subject.serving) == 1)
        assert await rank(subject) == "0"


async def test_a_draining_replica_finishes_its_call_and_gets_no_new_one():
    async with replicas(2) as (subject, rankers, servers, _):
        for ranker in rankers:
            ranker.hold = asyncio.Event()
        calls = [asyncio.create_task(rank(subject)) for _ in range(2)]
        await until(lambda: [r.calls for r in rankers] == [1, 1])
        draining = asyncio.create_task(servers[0].drain(notice_s=0.5, grace_s=10))
        await until(lambda: subject.serving == [servers[1].address])
        rankers[1].hold.set()
        rankers[1].hold = None
        assert [await rank(subject) for _ in range(3)] == ["1"] * 3
        rankers[0].hold.set()
        assert sorted(await asyncio.gather(*calls)) == ["0", "1"]
        await subject.close()  # lets go of the health stream, which the drain waits for
        await draining


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE]
)
async def test_a_refused_call_goes_to_the_other_replica_once(status):
    async with replicas(2) as (subject, rankers, _, _):
        rankers[0].refuse = status
        assert [await rank(subject) for _ in range(4)] == ["1"] * 4
        rankers[1].refuse = status
        await until(lambda: len(subject.serving) == 2)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rank(subject)
        assert error.value.code() is status
        await until(lambda: len(subject.serving) == 2)  # one refusal does not banish a replica


async def test_a_wrong_request_is_not_sent_twice():
    async with replicas(2) as (subject, rankers, _, _):
        for ranker in rankers:
            ranker.refuse = grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError):
            await rank(subject)
        assert sum(r.calls for r in rankers) == 1


async def test_the_deadline_travels_and_ends_the_call():
    async with replicas(1) as (subject, rankers, _, _):
        rankers[0].hold = asyncio.Event()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rank(subject, timeout_s=0.2)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < rankers[0].left_s < 0.25  # gRPC rounds it up a little
        await asyncio.wait_for(rankers[0].cancelled.wait(), 10)


async def test_a_cancelled_caller_stops_the_work_behind_it():
    async with replicas(1) as (subject, rankers, _, _):
        rankers[0].hold = asyncio.Event()
        call = asyncio.create_task(rank(subject))
        await until(lambda: rankers[0].calls == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(rankers[0].cancelled.wait(), 10)
