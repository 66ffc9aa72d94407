"""What a server bears: more calls than it can take, bytes that are none, and too many clients."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from prometheus_client import REGISTRY

from load_tests.serving.server_process import server_process
from protos.tandem.v1 import ranking_pb2 as pb
from protos.tandem.v1 import ranking_pb2_grpc, recommender_pb2, recommender_pb2_grpc
from services.common.channels import CHANNEL_OPTIONS, CLIENT_OPTIONS
from services.common.rpc import Refusal, rpc_method
from services.common.server import OTHER_DESCRIPTORS, GrpcServer, Service, max_connections

RANK = "/tandem.v1.Ranking/Rank"
OWN_CONNECTION = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))


class Ranker(ranking_pb2_grpc.RankingServicer):
    """Answers, or refuses what names the model "busy"."""

    @rpc_method("test_server")
    async def Rank(self, request, context):
        if request.model == "busy":
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "as the test wants", retry_s=0.04)
        return pb.RankResponse(model_version="1")


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    service = Service("tandem.v1.Ranking", ranking_pb2_grpc.add_RankingServicer_to_server, Ranker())
    server = GrpcServer([service], "127.0.0.1", 0)
    await server.start()
    yield server.address
    await server.stop()


def counted(status: str) -> float:
    labels = {"service": "test_server", "method": "Rank", "status": status}
    return REGISTRY.get_sample_value("tandem_rpc_requests_total", labels) or 0.0


async def test_calls_beyond_what_can_be_accepted_are_refused_by_name_with_a_hint_and_counted():
    before = counted("RESOURCE_EXHAUSTED")
    async with serving() as address, grpc.aio.insecure_channel(address) as channel:
        rank = ranking_pb2_grpc.RankingStub(channel).Rank
        busy = pb.RankRequest(model="busy")
        answers = await asyncio.gather(
            *(rank(busy, timeout=60) for _ in range(4_000)), return_exceptions=True
        )
    statuses = Counter((a.code(), a.details(), tuple(a.trailing_metadata())) for a in answers)
    hint = (("grpc-retry-pushback-ms", "40"),)
    assert statuses == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "as the test wants", hint): 4_000,
    }
    assert counted("RESOURCE_EXHAUSTED") == before + 4_000


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff\xff\xff\xff", b"\x0a\x05user"])
async def test_bytes_that_are_no_message_are_refused_in_a_sentence_and_counted(message):
    before = counted("INVALID_ARGUMENT")
    async with serving() as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(RANK)(message, timeout=20)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details().startswith("request: is not the message that the .proto decl")
        assert "<class" not in error.value.details()
        answer = await channel.unary_unary(RANK)(b"", timeout=20)  # an empty message is one
        assert pb.RankResponse.FromString(answer).model_version == "1"
    assert counted("INVALID_ARGUMENT") == before + 1


@asynccontextmanager
async def with_few_descriptors(log: Path) -> AsyncIterator[str]:
    """A server that may open 256 files, and that goes on opening `log` while it serves."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 256))

    async def open_files() -> None:
        while True:
            try:
                with log.open("a") as file:
                    file.write("opened\n")
            except OSError as error:
                print(error)
                return
            await asyncio.sleep(0.01)

    opening = asyncio.create_task(open_files())
    async with serving() as address:
        yield address
    opening.cancel()


async def test_idle_connections_leave_old_clients_and_files_their_descriptors(tmp_path):
    log = tmp_path / "log"
    with server_process(with_few_descriptors, log) as server:
        async with grpc.aio.insecure_channel(server.address, options=OWN_CONNECTION) as old:
            rank = ranking_pb2_grpc.RankingStub(old).Rank
            await rank(pb.RankRequest(), timeout=20)
            idle = [
                await asyncio.open_connection(*server.address.rsplit(":", 1)) for _ in range(400)
            ]
            assert server.process.num_fds() < 256 - OTHER_DESCRIPTORS / 2
            written = log.stat().st_size
            for _ in range(20):
                assert (await rank(pb.RankRequest(), timeout=20)).model_version == "1"
            while log.stat().st_size == written:  # noqa: ASYNC110  # another process writes
                await asyncio.sleep(0.01)
            for _, writer in idle:
                writer.close()
        async with grpc.aio.insecure_channel(server.address, options=OWN_CONNECTION) as new:
            rank = ranking_pb2_grpc.RankingStub(new).Rank
            assert (await rank(pb.RankRequest(), timeout=20, wait_for_ready=True)).model_version


def test_a_server_may_open_what_the_system_lets_it():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    connections = max_connections()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
    assert connections == most - OTHER_DESCRIPTORS


async def test_a_proxy_in_the_environment_is_not_asked_for_the_parts_of_an_installation(
    monkeypatch,
):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with (
        serving() as address,
        grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel,
    ):
        answer = await ranking_pb2_grpc.RankingStub(channel).Rank(pb.RankRequest(), timeout=20)
    assert answer.model_version == "1"


async def test_a_refused_request_comes_again_when_it_was_told_to_and_is_answered():
    came: list[float] = []

    class Busy(recommender_pb2_grpc.RecommenderServicer):
        @rpc_method("recommender")
        async def Recommend(self, request, context):
            came.append(asyncio.get_running_loop().time())
            if len(came) < 3:
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too busy", retry_s=0.2)
            return recommender_pb2.RecommendResponse(request_id="answered")

    register = recommender_pb2_grpc.add_RecommenderServicer_to_server
    server = GrpcServer([Service("tandem.v1.Recommender", register, Busy())], "127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(server.address, options=CLIENT_OPTIONS) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        answer = await stub.Recommend(recommender_pb2.RecommendRequest(), timeout=20)
    await server.stop()
    assert answer.request_id == "answered"
    assert len(came) == 3
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(came))
