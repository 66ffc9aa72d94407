"""The OpenFeature provider: the arms and parameters of the assigner through the standard API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode, TargetingKeyMissingError
from openfeature.flag_evaluation import Reason

from protos.tandem.v1.experiments_pb2_grpc import add_ExperimentsServicer_to_server
from services.common.server import GrpcServer, Service
from services.experiments.assign.assignment import Assigner
from services.experiments.assign.open_feature import ExperimentsProvider, assign_request
from services.experiments.assign.service import SERVICE, ExperimentsServicer
from services.experiments.declare import config_reader
from tests.domains import FILMS

TEXT = """\
version: 1
layers:
  - name: value
    parameters: [rerank.like_weight, ranking.enabled, ranking.model, retrieval.num_candidates]
    experiments:
      - name: mix
        where: {surface: {in: [home]}, context: {hour: {at_least: 18}}}
        arms:
          - {name: control, weight: 50}
          - name: treatment
            weight: 50
            parameters:
              rerank.like_weight: 3
              ranking.enabled: false
              ranking.model: mc_mlcc
              retrieval.num_candidates: 300
        allow_list: {vip: treatment}
"""
CONFIG = config_reader.parse(TEXT.encode(), "e.yaml", FILMS)
ASSIGNER = Assigner(CONFIG)


def arm_of(user: str) -> str:
    (assignment,) = ASSIGNER.assign(
        user, now_ms=0, surface="home", context={"hour": 18.0}
    ).assignments
    return assignment.arm


TREATED = next(u for u in map(str, range(100)) if arm_of(u) == "treatment")
UNTREATED = next(u for u in map(str, range(100)) if arm_of(u) == "control")


def evening(user: str, hour: float = 20) -> EvaluationContext:
    return EvaluationContext(user, {"surface": "home", "hour": hour, "plan": "gold"})


@asynccontextmanager
async def client_of_a_router(assigner: Assigner = ASSIGNER) -> AsyncIterator[OpenFeatureClient]:
    servicer = ExperimentsServicer(lambda: assigner, ("home",), lambda: 0.0)
    server = GrpcServer(
        [Service(SERVICE, add_ExperimentsServicer_to_server, servicer)], "127.0.0.1", 0
    )
    await server.start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            api.set_provider(ExperimentsProvider(channel, 10, {"hour"}, {"household"}), "tandem")
            yield api.get_client("tandem")
    finally:
        api.clear_providers()
        await server.stop()


FLAGS: list[tuple[str, str, Any, Any]] = [
    ("float", "rerank.like_weight", 3.0, 1.0),
    ("boolean", "ranking.enabled", False, True),
    ("string", "ranking.model", "mc_mlcc", "masknet"),
    ("integer", "retrieval.num_candidates", 300, 200),
    ("float", "retrieval.num_candidates", 300.0, 200.0),
]


@pytest.mark.parametrize(("kind", "key", "treated", "production"), FLAGS)
async def test_a_parameter_is_a_flag_of_its_type_with_the_arm_as_variant(
    kind: str, key: str, treated: Any, production: Any
) -> None:
    unlike = type(treated)(7) if not isinstance(treated, str) else "mine"
    async with client_of_a_router() as client:
        ask = getattr(client, f"get_{kind}_details_async")
        inside = await ask(key, unlike, evening(TREATED))
        control = await ask(key, unlike, evening(UNTREATED))
        outside = await ask(key, unlike, evening(TREATED, hour=7))
    assert (inside.value, inside.variant, inside.reason) == (treated, "treatment", Reason.SPLIT)
    assert type(inside.value) is type(treated)
    for details in (control, outside):
        assert (details.value, details.variant) == (production, None)
        assert (details.reason, details.error_code) == (Reason.DEFAULT, None)


async def test_an_experiment_is_a_flag_whose_value_is_the_arm() -> None:
    async with client_of_a_router() as client:
        ask = client.get_string_details_async
        for user in (TREATED, UNTREATED):
            details = await ask("experiment:mix", "none", evening(user))
            assert (details.value, details.variant) == (arm_of(user), arm_of(user))
            assert details.reason == Reason.SPLIT
        listed = await ask("experiment:mix", "none", evening("vip"))
        assert (listed.value, listed.reason) == ("treatment", Reason.TARGETING_MATCH)
        for key, context in (
            ("experiment:mix", evening(TREATED, hour=7)),
            ("experiment:none", evening(TREATED)),
        ):
            details = await ask(key, "none", context)
            assert (details.value, details.reason) == ("none", Reason.DEFAULT)


@pytest.mark.parametrize(
    ("key", "context", "code", "message"),
    [
        ("rerank.like_wait", evening("u"), ErrorCode.FLAG_NOT_FOUND, "rerank.like_weight"),
        ("ranking.model", evening("u"), ErrorCode.TYPE_MISMATCH, "of type str, not float"),
        ("experiment:mix", evening("u"), ErrorCode.TYPE_MISMATCH, "of type str, not float"),
        ("rerank.like_weight", EvaluationContext(), ErrorCode.TARGETING_KEY_MISSING, "user id"),
        (
            "rerank.like_weight",
            EvaluationContext("u", {"surface": "hmoe"}),
            ErrorCode.INVALID_CONTEXT,
            "surface: 'hmoe' is unknown",
        ),
    ],
)
async def test_what_cannot_be_resolved_gives_the_callers_default_and_says_why(
    key: str, context: EvaluationContext, code: ErrorCode, message: str
) -> None:
    async with client_of_a_router() as client:
        details = await client.get_float_details_async(key, 7.0, context)
    assert (details.value, details.reason, details.error_code) == (7.0, Reason.ERROR, code)
    assert message in (details.error_message or "")


async def test_no_flag_is_an_object() -> None:
    async with client_of_a_router() as client:
        details = await client.get_object_details_async("ranking.model", {"a": 1}, evening("u"))
    assert (details.value, details.error_code) == ({"a": 1}, ErrorCode.TYPE_MISMATCH)


def test_without_a_router_the_callers_default_is_served() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        api.set_provider(ExperimentsProvider(channel, timeout_s=10), "nobody")
        try:
            details = api.get_client("nobody").get_float_details(
                "rerank.like_weight", 7.0, evening("u")
            )
        finally:
            api.clear_providers()
    assert (details.value, details.error_code) == (7.0, ErrorCode.GENERAL)
    assert (details.error_message or "").startswith("UNAVAILABLE: ")


def test_the_context_becomes_ids_surface_and_numbers() -> None:
    request = assign_request(
        EvaluationContext(
            "u",
            {
                "session_id": "s",
                "surface": "home",
                "hour": 20,
                "mobile": True,
                "share": 0.5,
                "plan": "gold",
                "bad": float("nan"),
                "list": [1],
                "huge": 10**400,
                "private": 5,
            },
        ),
        {"hour", "mobile", "share", "plan", "bad", "list", "huge"},
    )
    assert (request.user_id, request.session_id, request.surface) == ("u", "s", "home")
    assert dict(request.context) == {"hour": 20.0, "mobile": 1.0, "share": 0.5}
    assert assign_request(EvaluationContext(None, {"session_id": "s"}), ()).session_id == "s"
    assert not request.unit_ids
    with pytest.raises(TargetingKeyMissingError):
        assign_request(EvaluationContext(None, {"surface": "home"}), ())


def test_the_named_units_ids_pass_and_no_other_attribute() -> None:
    attributes = {"household": "h-1", "device": 7, "account": "", "flag": True, "plan": "gold"}
    request = assign_request(
        EvaluationContext("u", attributes), {"device"}, {"household", "device", "account", "flag"}
    )
    assert dict(request.unit_ids) == {"household": "h-1", "device": "7"}
    assert not request.context
    alone = assign_request(EvaluationContext(None, {"household": "h"}), (), {"household"})
    assert (alone.user_id, dict(alone.unit_ids)) == ("", {"household": "h"})


async def test_an_experiment_on_households_is_a_flag_for_who_sends_the_household() -> None:
    text = TEXT.replace("version: 1", "version: 1\nunits: [household]").replace(
        "        where: {surface: {in: [home]}, context: {hour: {at_least: 18}}}\n",
        "        unit: household\n",
    )
    assigner = Assigner(config_reader.parse(text.encode(), "e", FILMS))
    async with client_of_a_router(assigner) as client:
        ask = client.get_string_details_async
        listed = EvaluationContext("u", {"household": "vip"})
        assert (await ask("experiment:mix", "none", listed)).value == "treatment"
        without = EvaluationContext("vip", {"house": "vip"})
        assert (await ask("experiment:mix", "none", without)).value == "none"
