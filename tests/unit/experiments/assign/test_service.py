"""Experiments over gRPC: the same arms as in the process, and refusals that name the field."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.tandem.v1 import experiments_pb2 as pb
from protos.tandem.v1.experiments_pb2_grpc import (
    ExperimentsStub,
    add_ExperimentsServicer_to_server,
)
from services.common.server import GrpcServer, Service
from services.experiments.assign.assignment import Assigner
from services.experiments.assign.service import SERVICE, ExperimentsServicer, description
from services.experiments.declare import config_reader
from tests.domains import FILMS

TEXT = """\
version: 1
holdout: {percent: 20, salt: out}
layers:
  - name: value
    parameters: [rerank.like_weight, rerank.diversity]
    experiments:
      - name: mix
        start: 1970-01-01T00:00:01Z
        stop: 1970-01-01T00:00:02.500Z
        where: {surface: {in: [home]}, context: {hour: {at_least: 18, not_in: [22.5, 23]}}}
        buckets: [0, 9000]
        arms:
          - {name: control, weight: 33.33}
          - name: treatment
            weight: 66.67
            traffic: 12.5
            parameters: {rerank.like_weight: 3, rerank.diversity: 0.1}
        allow_list: {vip: treatment, other: control}
      - {name: "off", enabled: false, arms: [{name: all, weight: 100}]}
  - name: visits
    salt: visits-2
    parameters: [retrieval.num_candidates]
    experiments:
      - {name: depth, unit: session, arms: [{name: deep, weight: 100}]}
"""
CONFIG = config_reader.parse(TEXT.encode(), "e.yaml", FILMS)
SURFACES = frozenset({"home", "detail"})


class Clock:
    now_s = 1.5

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def serving(
    clock: Clock, servicer: ExperimentsServicer | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    servicer = servicer or ExperimentsServicer(lambda: Assigner(CONFIG), SURFACES, clock)
    service = Service(SERVICE, add_ExperimentsServicer_to_server, servicer)
    server = GrpcServer([service], "127.0.0.1", 0)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield channel
    finally:
        await server.stop()


def request(user: str = "u", session: str = "", hour: float = 20.0) -> pb.AssignRequest:
    return pb.AssignRequest(
        user_id=user, session_id=session, surface="home", context={"hour": hour}
    )


async def test_assign_answers_what_the_assigner_in_the_process_decides() -> None:
    assigner = Assigner(CONFIG)
    seen = set()
    async with serving(Clock()) as channel:
        stub = ExperimentsStub(channel)
        for user in [*(f"user-{i}" for i in range(40)), "vip"]:
            for hour in (20.0, 10.0):
                got = await stub.Assign(request(user, f"s-{user}", hour))
                expected = assigner.assign(
                    user, f"s-{user}", now_ms=1_500, surface="home", context={"hour": hour}
                )
                assert tuple(got.assignments) == expected.messages
                assert dict(got.parameters) == expected.parameters.as_text()
                assert {k: got.parameters[k] for k in got.overridden_by} == expected.overrides
                layers = {a.layer for a in got.assignments}
                assert set(got.overridden_by.values()) <= layers & {"value"}
                assert (got.held_out, got.assigned_at_ms) == (expected.held_out, 1_500)
                seen.add((got.held_out, *(a.arm for a in got.assignments)))
    assert {(True,), (False, "deep"), (False, "control", "deep")} <= seen


async def test_assign_decides_for_the_instant_of_the_clock() -> None:
    clock = Clock()
    vip = [u for u in ("vip", "other") if not Assigner(CONFIG).assign(u, now_ms=0).held_out]
    assert vip
    arms = {}
    async with serving(clock) as channel:
        for now_s in (0.999, 1.0, 2.499, 2.5):
            clock.now_s = now_s
            answer = await ExperimentsStub(channel).Assign(request(vip[0]))
            arms[now_s] = len(answer.assignments)
    assert arms == {0.999: 0, 1.0: 1, 2.499: 1, 2.5: 0}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (pb.AssignRequest(surface="home"), "user_id: is empty, and so are session_id and unit_ids"),
        (pb.AssignRequest(user_id="x" * 257), "user_id: has 257 bytes"),
        (pb.AssignRequest(user_id="u", session_id="é" * 129), "session_id: has 258 bytes"),
        (pb.AssignRequest(user_id="u", surface="hmoe"), "surface: 'hmoe' is unknown"),
        (
            pb.AssignRequest(user_id="u", context={str(i): 0 for i in range(33)}),
            "context: has 33 keys",
        ),
        (pb.AssignRequest(user_id="u", context={"": 0}), "context key: is empty"),
        (pb.AssignRequest(user_id="u", context={"x": float("nan")}), "context['x']: is nan"),
        (pb.AssignRequest(user_id="u", context={"x": float("inf")}), "context['x']: is inf"),
        (pb.AssignRequest(user_id="u", unit_ids={"h": "x" * 257}), "unit_ids['h']: has 257 bytes"),
    ],
)
async def test_a_wrong_field_is_refused_by_its_name(wrong: pb.AssignRequest, field: str) -> None:
    async with serving(Clock()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ExperimentsStub(channel).Assign(wrong)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith(field)


async def test_a_session_alone_and_a_request_without_a_surface_are_accepted() -> None:
    async with serving(Clock()) as channel:
        answer = await ExperimentsStub(channel).Assign(pb.AssignRequest(session_id="s"))
    assert [(a.experiment, a.unit) for a in answer.assignments] == [("depth", "session")]


KINDS = """\
version: 1
units: [household]
layers:
  - name: homes
    parameters: [rerank.diversity]
    experiments:
      - name: by_household
        unit: household
        where: {user: {click: {at_least: 10}}}
        arms: [{name: one, weight: 50, stopped: false}, {name: two, weight: 50, stopped: true}]
  - name: lists
    parameters: [rerank.like_weight]
    experiments:
      - name: mixed
        interleave: team_draft
        ramp: {steps: [2.5, 50, 100], hold_s: 60, min_units: 7}
        arms:
          - {name: a, parameters: {rerank.like_weight: 2}}
          - {name: b, parameters: {rerank.like_weight: 3}}
"""
PLAIN_KINDS = KINDS.replace("        where: {user: {click: {at_least: 10}}}\n", "")
IDS = {"household": "h-1", "else": "x"}


async def assigned(
    text: str, counts: dict[str, float] | None, request: pb.AssignRequest
) -> tuple[list[str], list[str]]:
    """(experiments of the answer, users whose counts were asked for); None: nobody to ask."""
    assigner, asked = Assigner(config_reader.parse(text.encode(), "e", FILMS)), []

    async def features(user: str) -> dict[str, float]:
        asked.append(user)
        return counts or {}

    source = None if counts is None else features
    servicer = ExperimentsServicer(lambda: assigner, SURFACES, Clock(), source)
    async with serving(Clock(), servicer) as channel:
        answer = await ExperimentsStub(channel).Assign(request)
    return [a.experiment for a in answer.assignments if a.unit == "household"], asked


@pytest.mark.parametrize(
    ("text", "counts", "user", "inside", "asked"),
    [
        (KINDS, {"click": 10.0}, "u", True, True),
        (KINDS, {"click": 9.0}, "u", False, True),
        (KINDS, {}, "u", False, True),  # no profile
        (KINDS, None, "u", False, False),
        (KINDS, {"click": 10.0}, "", False, False),
        (PLAIN_KINDS, {"click": 0.0}, "u", True, False),
    ],
)
async def test_the_users_counts_are_read_only_if_a_condition_asks_for_them(
    text: str, counts: dict[str, float] | None, user: str, inside: bool, asked: bool
) -> None:
    request = pb.AssignRequest(user_id=user, unit_ids=IDS)
    expected = (["by_household"] if inside else [], ["u"] if asked else [])
    assert await assigned(text, counts, request) == expected


async def test_describe_tells_ramps_interleaving_and_stopped_arms() -> None:
    config = config_reader.parse(KINDS.encode(), "e", FILMS)
    servicer = ExperimentsServicer(lambda: Assigner(config), SURFACES, Clock())
    async with serving(Clock(), servicer) as channel:
        answer = await ExperimentsStub(channel).Describe(pb.DescribeRequest())
    (homes,), (mixed,) = (layer.experiments for layer in answer.layers)
    assert [arm.stopped for arm in homes.arms] == [False, True]
    assert (homes.unit, homes.interleave, homes.HasField("ramp")) == ("household", "", False)
    assert homes.where[0].subject == "user.click"
    assert mixed.interleave == "team_draft"
    assert mixed.ramp == pb.RampDescription(
        steps_percent=[2.5, 50, 100], step=0, hold_s=60, min_units=7
    )
    assert [(arm.weight_percent, arm.traffic_percent) for arm in mixed.arms] == [(0, 2.5)] * 2


async def test_describe_tells_the_step_in_force_and_that_nobody_is_interleaved_any_more() -> None:
    config = config_reader.parse(KINDS.encode(), "e", FILMS)
    homes, lists = config.layers
    (mixed,) = lists.experiments
    arms = tuple(replace(arm, enrolled=5_000) for arm in mixed.arms)
    later = replace(lists, experiments=(replace(mixed, arms=arms, stopped=True),))
    described = description(replace(config, layers=(homes, later)), 0)
    found = described.layers[1].experiments[0]
    assert found.ramp.step == 1
    assert [(arm.name, arm.stopped) for arm in found.arms] == [("a", False), ("b", True)]


async def test_describe_tells_the_whole_file() -> None:
    async with serving(Clock()) as channel:
        answer = await ExperimentsStub(channel).Describe(pb.DescribeRequest())
    assert (answer.holdout_percent, answer.holdout_salt) == (20, "out")
    assert answer.described_at_ms == 1_500
    value, visits = answer.layers
    assert (value.name, value.salt) == ("value", "value")
    assert list(value.parameters) == ["rerank.like_weight", "rerank.diversity"]
    mix, off = value.experiments
    treatment = pb.ArmDescription(
        name="treatment",
        weight_percent=66.67,
        traffic_percent=12.5,
        parameters={"rerank.like_weight": "3.0", "rerank.diversity": "0.1"},
    )
    assert mix == pb.ExperimentDescription(
        name="mix",
        salt="mix",
        unit="user",
        state=pb.ExperimentDescription.RUNNING,
        first_bucket=0,
        end_bucket=9_000,
        start_ms=1_000,
        stop_ms=2_500,
        where=[
            pb.ConditionDescription(subject="surface", operator="in", operands=["home"]),
            pb.ConditionDescription(subject="context.hour", operator="at_least", operands=["18"]),
            pb.ConditionDescription(
                subject="context.hour", operator="not_in", operands=["22.5", "23"]
            ),
        ],
        arms=[
            pb.ArmDescription(name="control", weight_percent=33.33, traffic_percent=100),
            treatment,
        ],
        allow_listed=2,
    )
    assert off.state == pb.ExperimentDescription.OFF
    assert not off.HasField("start_ms")
    assert not off.HasField("stop_ms")
    assert (visits.salt, visits.experiments[0].unit) == ("visits-2", "session")


@pytest.mark.parametrize(("now_s", "state"), [(0.0, "SCHEDULED"), (1.0, "RUNNING"), (2.5, "ENDED")])
async def test_a_state_is_that_of_the_instant(now_s: float, state: str) -> None:
    clock = Clock()
    clock.now_s = now_s
    async with serving(clock) as channel:
        answer = await ExperimentsStub(channel).Describe(pb.DescribeRequest())
    got = answer.layers[0].experiments[0].state
    assert pb.ExperimentDescription.State.Name(got) == state


async def test_probes_and_grpcurl_find_the_service() -> None:
    async with serving(Clock()) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        answers = [answer async for answer in stream]
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE in {s.name for a in answers for s in a.list_services_response.service}
    described = descriptor_pool.Default().FindServiceByName(SERVICE)
    assert [method.name for method in described.methods] == ["Assign", "Describe"]
