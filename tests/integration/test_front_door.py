"""The router's front door: who is let in, refused or given up, what is no message, health."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client import REGISTRY

from models.catalogue import ItemTable
from models.data.worlds.films.schema import ITEM_DTYPE, SCHEMA
from protos.tandem.v1 import (
    candidate_generation_pb2,
    experiments_pb2,
    ranking_pb2,
    recommender_pb2,
)
from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1.recommender_pb2_grpc import (
    RecommenderStub,
    add_RecommenderServicer_to_server,
)
from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    POPULAR_FALLBACK,
    UNRANKED,
    DecisionRecord,
)
from services.common.channels import CHANNEL_OPTIONS
from services.common.server import GrpcServer, Service
from services.common.settings import RouterSettings, Settings
from services.event_log.connect import connect as connect_log
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.feedback.ingest import Ingest
from services.router.admission import FEW
from services.router.servicer import SERVICE, RecommenderServicer
from tests.domains import FILMS
from tests.integration.asking import click, read_log, records, request
from tests.integration.conftest import until
from tests.unit.router.models import Stuck, surroundings


@pytest.fixture
def items() -> ItemTable:
    """Forty items of which nothing is known."""
    return ItemTable.build([f"m{i}" for i in range(1, 41)], np.zeros(40, ITEM_DTYPE))


async def test_a_caller_that_hangs_up_leaves_a_record_of_its_arms(small_settings, items):
    event_log = connect_log(small_settings.event_log, None)
    settings = small_settings.feedback
    assigner = Assigner(config_reader.load(small_settings.router.experiments_file, FILMS))
    replicas = Stuck()
    servicer = RecommenderServicer(
        surroundings(items, replicas, assigner),
        event_log,
        Ingest(SCHEMA, event_log, settings, small_settings.event_log),
    )
    service = Service(SERVICE, add_RecommenderServicer_to_server, servicer)
    server = GrpcServer([service], "127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = RecommenderStub(channel).Recommend(request(), timeout=30)
        await asyncio.wait_for(replicas.asked.wait(), 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        (found,) = await asyncio.to_thread(read_log, event_log, "decisions", 1)
    await server.stop()
    servicer.close()
    event_log.close()
    record = DecisionRecord.FromString(found.value)
    assert record.outcome == ABANDONED
    assert found.key == b"u1"
    assert [a.experiment for a in record.assignments] == ["like_weight"]
    assert record.assignments[0].unread  # it had not come as far as the value model
    assert not record.item_ids


async def test_past_the_limit_a_request_is_refused_at_once_and_late_ones_are_told_apart(
    small_settings, items
):
    event_log = connect_log(small_settings.event_log, None)
    replicas = Stuck()
    settings = RouterSettings(max_in_flight=1, deadline_ms=60_000, retrieve_ms=60_000)
    servicer = RecommenderServicer(
        surroundings(
            items,
            replicas,
            Assigner(config_reader.load(small_settings.router.experiments_file, FILMS)),
            settings=settings,
        ),
        event_log,
        Ingest(SCHEMA, event_log, small_settings.feedback, small_settings.event_log),
    )
    service = Service(SERVICE, add_RecommenderServicer_to_server, servicer)
    server = GrpcServer([service], "127.0.0.1", 0)
    await server.start()

    def counted(status: str) -> float:
        labels = {"service": "recommender", "method": "Recommend", "status": status}
        return REGISTRY.get_sample_value("tandem_rpc_requests_total", labels) or 0

    late, cancelled = counted("DEADLINE_EXCEEDED"), counted("CANCELLED")
    async with grpc.aio.insecure_channel(server.address) as channel:
        recommend = RecommenderStub(channel).Recommend
        call = recommend(request(), timeout=30)
        await asyncio.wait_for(replicas.asked.wait(), 20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await recommend(request(), timeout=30)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "router.max_in_flight" in refused.value.details()
        call.cancel()
        await until(lambda: counted("CANCELLED") == cancelled + 1)
        replicas.asked.clear()  # the place is free again
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await recommend(request(), timeout=0.3)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert replicas.asked.is_set()
        await until(lambda: counted("DEADLINE_EXCEEDED") == late + 1)
    assert counted("CANCELLED") == cancelled + 1
    await server.stop()
    servicer.close()
    event_log.close()


@asynccontextmanager
async def front_door(models: Stuck, items: ItemTable, given: Settings):
    """A router's listener over `models`, whose time is long and whose door is at its narrowest: FEW
    requests at work. Gives its servicer and a stub."""
    event_log = connect_log(given.event_log, None)
    servicer = RecommenderServicer(
        surroundings(
            items,
            models,
            Assigner(config_reader.load(given.router.experiments_file, FILMS)),
            settings=RouterSettings(deadline_ms=60_000, retrieve_ms=60_000),
        ),
        event_log,
        Ingest(SCHEMA, event_log, given.feedback, given.event_log),
    )
    servicer._admission.per_request_s = 60.0
    server = GrpcServer(
        [Service(SERVICE, add_RecommenderServicer_to_server, servicer)], "127.0.0.1", 0
    )
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield servicer, RecommenderStub(channel)
    await server.stop()
    servicer.close()
    event_log.close()


async def test_what_could_not_be_answered_in_time_is_refused_and_the_client_told_when_to_retry(
    small_settings, items
):
    models = Stuck()
    async with front_door(models, items, small_settings) as (servicer, stub):
        at_work = [stub.Recommend(request(), timeout=30) for _ in range(FEW)]
        await until(lambda: models.calls == FEW)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Recommend(request(), timeout=30)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "8 requests at work + 1, 60000.0 ms each" in refused.value.details()
        ((name, milliseconds),) = refused.value.trailing_metadata()
        assert name == "grpc-retry-pushback-ms"
        assert 270_000 <= int(milliseconds) <= 810_000
        at_work[0].cancel()
        await until(lambda: servicer._admission.at_work == FEW - 1)
        again = stub.Recommend(request(), timeout=30)
        await until(lambda: models.calls == FEW + 1)
        for call in (*at_work, again):
            call.cancel()


async def test_while_a_model_service_hangs_nobody_is_refused_and_few_go_on_asking_it(
    small_settings, items
):
    models = Stuck(hanging=True)
    async with front_door(models, items, small_settings) as (_, stub):
        at_work = [stub.Recommend(request(), timeout=30) for _ in range(FEW)]
        await until(lambda: models.calls == FEW)
        for _ in range(3):
            response = await stub.Recommend(request(num_items=5), timeout=30)
            assert set(response.degradations) == {POPULAR_FALLBACK, UNRANKED}
            assert len(response.items) == 5
        assert models.calls == FEW
        for call in at_work:
            call.cancel()


async def test_an_answer_that_came_too_late_makes_the_next_ones_keep_more_time_for_answering(
    small_settings, items
):
    async with front_door(Stuck(), items, small_settings) as (servicer, stub):
        assert servicer._reserve.seconds == pytest.approx(0.005)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Recommend(request(), timeout=0.2)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: servicer._reserve.seconds > 0.009)


async def test_bytes_that_are_no_message_are_refused_by_every_method_of_every_service(installation):
    def refused() -> float:
        samples = [s for m in REGISTRY.collect() for s in m.samples]
        return sum(
            s.value
            for s in samples
            if s.name == "tandem_rpc_requests_total" and s.labels["status"] == "INVALID_ARGUMENT"
        )

    before = refused()
    addresses = [
        (recommender_pb2, installation.router.address),
        (experiments_pb2, installation.router.address),
        (ranking_pb2, installation.replicas["ranking"][0].address),
        (
            candidate_generation_pb2,
            installation.replicas["candidate_generation"][0].address,
        ),
    ]
    methods = [
        (method, address)
        for file, address in addresses
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    for method, address in methods:
        path = f"/{method.containing_service.full_name}/{method.name}"
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            if method.client_streaming:
                answer = channel.stream_unary(path)(iter([b"\xff"]), timeout=20)
            else:
                answer = channel.unary_unary(path)(b"\xff", timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await answer
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, path
        assert "is not the message that the .proto declares" in error.value.details()
    assert len(methods) >= 8
    assert refused() == before + len(methods)


async def test_bulk_feedback_is_recorded_up_to_the_first_wrong_batch(installation):
    def batches(*sizes: int):
        number = 0
        for size in sizes:
            events = []
            for _ in range(size):
                events.append(click("u2", "m3", f"b{number}"))
                number += 1
            yield pb.RecordFeedbackRequest(events=events)

    answer = await installation.stub.RecordFeedbackStream(batches(3, 1000, 2), timeout=20)
    assert answer.recorded == 1005
    call = installation.stub.RecordFeedbackStream(batches(4, 1001, 2), timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith("batch 1: events: has 1001 events")
    assert ("tandem-recorded-events", "4") in tuple(error.value.trailing_metadata())
    found = await asyncio.to_thread(records, installation, "feedback", 1009)
    assert len(found) == 1009


async def test_health_and_reflection_work_for_probes_and_grpcurl(installation):
    stub = health_pb2_grpc.HealthStub(installation.channel)
    for service in ("", "tandem.v1.Recommender", "tandem.v1.Experiments"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def listed(address: str) -> set[str]:
        with grpc.insecure_channel(address) as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    found = await asyncio.to_thread(listed, installation.router.address)
    assert {"tandem.v1.Recommender", "tandem.v1.Experiments"} <= found
    (ranking,) = installation.replicas["ranking"]
    assert "tandem.v1.Ranking" in await asyncio.to_thread(listed, ranking.address)
