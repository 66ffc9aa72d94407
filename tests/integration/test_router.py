"""Recommend and RecordFeedback over gRPC: answers, degradations, records."""

from __future__ import annotations

import asyncio
import math
import time

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.connect import connect as connect_store
from load_tests.demo.metrics import scrape
from load_tests.serving.feeding import feed
from models.data.worlds.films.schema import GROUPS, SCHEMA
from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1.experiments_pb2 import AssignRequest
from protos.tandem.v1.experiments_pb2_grpc import ExperimentsStub
from protos.tandem.v1.records_pb2 import (
    DEFAULT_FEATURES,
    POPULAR_FALLBACK,
    UNRANKED,
    DecisionRecord,
)
from services.common.settings import EventLogSettings
from services.event_log.connect import connect as connect_log
from services.feedback.updater import FeatureUpdater
from services.installation import check_ports, endpoints, metrics_endpoints
from services.router.main import known_in_force
from tests.artifacts import publish_small, small_items
from tests.integration.asking import click, records, request
from tests.integration.conftest import InProcess, running, until
from tests.unit.experiments.messages import known_before


def apply_feedback(installation: InProcess) -> int:
    """Run the real updater over what the log holds."""
    settings = installation.settings
    log = connect_log(settings.event_log, None)
    store = connect_store(
        settings.feature_store.url, GROUPS, installation=None, timeout_ms=50, lmdb_map_size_mb=64
    )
    consumer = log.consumer("feedback", "feature-updater")
    catalogue = installation.router._catalogue
    clock_ms = lambda: int(time.time() * 1000)  # noqa: E731
    updater = FeatureUpdater(
        SCHEMA, store, log, consumer, lambda: catalogue.items, clock_ms=clock_ms
    )
    handled = 0
    while step := updater.step(0.5):
        handled += step
    consumer.close()
    log.close()
    return handled


async def test_a_request_is_answered_ranked_with_reasons_and_nothing_degraded(installation):
    response = await installation.stub.Recommend(request(), timeout=10)
    assert len(response.items) == 10
    assert not response.degradations
    scores = [item.score for item in response.items]
    assert scores == sorted(scores, reverse=True)
    assert len({item.item_id for item in response.items}) == 10
    for item in response.items:
        assert item.reason.source == "ssl_two_tower"
        assert set(item.reason.task_scores) == {"click", "like"}
    explanation = response.explanation
    assert set(explanation.model_versions) == {"candidate_generation", "ranking"}
    assert explanation.feature_age_s == {"profile": -1, "history": -1}
    assert set(explanation.stage_ms) >= {"assign", "hydrate", "retrieve", "filter", "rank"}
    (assignment,) = response.assignments
    assert assignment.experiment == "like_weight"


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
async def test_an_installation_on_ipv6_answers_like_any_other(small_settings, host):
    def on(section):
        return section.model_validate(section.model_dump() | {"host": host})

    there = small_settings.model_copy(
        update={
            name: on(getattr(small_settings, name))
            for name in ("router", "candidate_generation", "ranking")
        }
    )
    async with running(there) as installation:
        (address,), (metrics,) = (of(there)["router"] for of in (endpoints, metrics_endpoints))
        assert address.startswith("[::")
        response = await installation.stub.Recommend(request(), timeout=10)
        assert len(response.items) == 10
        assert not response.degradations
        found = await asyncio.to_thread(scrape, metrics)
        assert found is not None
    check_ports(there, ["router"])


async def test_the_decision_record_says_what_was_served(installation):
    response = await installation.stub.Recommend(request("vip", session_id="s"), timeout=10)
    (found,) = await asyncio.to_thread(records, installation, "decisions", 1)
    record = DecisionRecord.FromString(found.value)
    assert found.key == b"vip"
    assert record.request_id == response.request_id
    assert list(record.item_ids) == [item.item_id for item in response.items]
    scores = np.frombuffer(record.scores, "<f4")
    np.testing.assert_array_equal(scores, [item.score for item in response.items])
    assert np.frombuffer(record.task_scores, "<f4").shape == (20,)
    assert np.frombuffer(record.propensities, "<f4").tolist() == [1.0] * 10
    assert record.parameters == {"rerank.like_weight": "3.0"}
    assert list(record.assignments) == list(response.assignments)
    assert record.assignments[0].overridden
    assert record.session_id == "s"


async def test_feedback_changes_the_next_answer(installation):
    first = await installation.stub.Recommend(request(), timeout=10)
    clicked = first.items[0].item_id
    event = click("u1", clicked, "e1")
    answer = await installation.stub.RecordFeedback(
        pb.RecordFeedbackRequest(events=[event, event]), timeout=10
    )
    assert answer.recorded == 2  # the log holds both; they count once

    async def changed() -> None:
        second = await installation.stub.Recommend(request(), timeout=10)
        assert not second.degradations
        assert clicked not in {item.item_id for item in second.items}
        assert len(second.items) == 10
        assert second.explanation.feature_age_s["history"] >= 0
        assert [i.score for i in second.items] != [i.score for i in first.items]

    await changed()  # no updater runs: the router itself knows what it has acknowledged
    assert "u1" in installation.router._recent.users
    assert await asyncio.to_thread(apply_feedback, installation) == 2
    await changed()
    assert "u1" not in installation.router._recent.users  # the store knows now


async def test_excluded_items_are_not_shown_and_the_list_stays_full(installation):
    shown = [i.item_id for i in (await installation.stub.Recommend(request(), timeout=10)).items]
    other = await installation.stub.Recommend(request(exclude_item_ids=shown), timeout=10)
    assert len(other.items) == 10
    assert not {i.item_id for i in other.items} & set(shown)


async def test_the_same_user_gets_the_same_arm_and_list_every_time(installation):
    answers = [await installation.stub.Recommend(request("same"), timeout=10) for _ in range(3)]
    assert len({a.assignments[0].arm for a in answers}) == 1
    assert len({tuple(i.item_id for i in a.items) for a in answers}) == 1
    assert len({a.request_id for a in answers}) == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surface": "cellar"}, "surface"),
        ({"num_items": 0}, "num_items"),
        ({"user_id": ""}, "user_id"),
        ({"context": {"x": math.nan}}, "context['x']"),
        ({"unit_ids": {"household": ""}}, "unit_ids['household']"),
    ],
)
async def test_bad_input_is_invalid_argument_naming_the_field(installation, changes, field):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await installation.stub.Recommend(request(**changes), timeout=10)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith(field)
    assert (await installation.stub.Recommend(request(), timeout=10)).items


async def test_without_ranking_the_answer_comes_in_retrieval_order(installation):
    await installation.drain_replica("ranking", installation.replicas["ranking"][0])
    response = await installation.stub.Recommend(request(), timeout=10)
    assert list(response.degradations) == [UNRANKED]
    retrieval = [item.reason.retrieval_score for item in response.items]
    assert retrieval == sorted(retrieval, reverse=True)
    assert len(response.items) == 10
    await installation.start_replica("ranking")
    await until(lambda: len(installation.serving("ranking")) == 1)
    assert not (await installation.stub.Recommend(request(), timeout=10)).degradations


async def test_without_candidate_generation_popular_items_are_ranked(installation):
    kind = "candidate_generation"
    await installation.drain_replica(kind, installation.replicas[kind][0])
    response = await installation.stub.Recommend(request(), timeout=10)
    assert list(response.degradations) == [POPULAR_FALLBACK]
    assert {item.reason.source for item in response.items} == {"popular"}
    assert response.items[0].reason.task_scores


async def test_without_any_replica_the_most_popular_items_are_served(installation):
    for kind, replicas in installation.replicas.items():
        await installation.drain_replica(kind, replicas[0])
    response = await installation.stub.Recommend(request(), timeout=10)
    assert [item.item_id for item in response.items] == [f"m{i}" for i in range(1, 11)]
    assert set(response.degradations) == {POPULAR_FALLBACK, UNRANKED}


async def test_a_broken_feature_store_means_defaults_not_errors(installation):
    installation.router._store.close()
    response = await installation.stub.Recommend(request(), timeout=10)
    assert DEFAULT_FEATURES in response.degradations
    assert len(response.items) == 10


async def test_a_tight_deadline_is_honoured_with_a_degraded_answer_or_its_own_status(installation):
    async def ask(timeout_s: float) -> str:
        try:
            response = await installation.stub.Recommend(request(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "degraded" if response.degradations else "full"

    outcomes = [await ask(ms / 1000) for ms in (0.1, 1, 2, 5, 8, 10, 15, 30)]
    assert set(outcomes) <= {"full", "degraded", "DEADLINE_EXCEEDED"}
    assert await ask(10) == "full"


async def test_scaling_up_and_down_under_traffic_degrades_no_request(installation):
    stop = asyncio.Event()
    answers: list[pb.RecommendResponse] = []

    async def traffic() -> None:
        while not stop.is_set():
            answers.append(await installation.stub.Recommend(request(), timeout=10))

    senders = [asyncio.create_task(traffic()) for _ in range(4)]
    for kind in ("ranking", "candidate_generation"):
        second = await installation.start_replica(kind)
        await until(lambda kind=kind: len(installation.serving(kind)) == 2)
        seen = len(answers)
        await until(lambda seen=seen: len(answers) > seen + 20)
        await installation.drain_replica(kind, second)
        await until(lambda kind=kind: len(installation.serving(kind)) == 1)
    stop.set()
    await asyncio.gather(*senders)
    assert len(answers) > 40
    assert not [a.degradations for a in answers if a.degradations]


async def test_an_interleaved_list_says_whose_each_item_is(small_settings):
    small_settings.router.experiments_file.write_text("""\
version: 1
layers:
  - name: value
    parameters: [rerank.like_weight]
    experiments:
      - name: likes
        interleave: team_draft
        arms:
          - {name: few, parameters: {rerank.like_weight: 0.0}}
          - {name: many, parameters: {rerank.like_weight: 100.0}}
""")
    async with running(small_settings) as installation:
        response = await installation.stub.Recommend(request(), timeout=10)
        (found,) = await asyncio.to_thread(records, installation, "decisions", 1)
    record = DecisionRecord.FromString(found.value)
    assert [(a.experiment, a.arm) for a in response.assignments] == [("likes", "interleaved")]
    assert not response.degradations
    assert record.interleaving == response.interleaving
    assert (response.interleaving.arm_a, response.interleaving.arm_b) == ("few", "many")
    teams = list(response.interleaving.teams)
    assert len(teams) == len(response.items) == 10
    assert sorted(teams) == [0] * 5 + [1] * 5
    weights = (0.0, 100.0)
    for item, team in zip(response.items, teams, strict=True):
        likes = item.reason.task_scores
        expected = likes["click"] * (1 + weights[team] * likes["like"])
        assert item.score == pytest.approx(expected, rel=1e-5)
    for team in (0, 1):
        scores = [item.score for item, t in zip(response.items, teams, strict=True) if t == team]
        assert scores == sorted(scores, reverse=True)


async def test_an_experiment_on_what_the_store_knows_of_users_lets_them_in_by_it(small_settings):
    small_settings.router.experiments_file.write_text("""\
version: 1
units: [household]
segments:
  - {name: clickers, where: {user: {click: {at_least: 1}}}}
layers:
  - name: value
    parameters: [rerank.like_weight]
    experiments:
      - name: for_clickers
        where: {user: {click: {at_least: 1}}}
        arms:
          - {name: control, weight: 50}
          - {name: treatment, weight: 50, parameters: {rerank.like_weight: 3.0}}
""")
    async with running(small_settings) as installation:
        ids = {"household": "h", "unknown": "x"}
        first = await installation.stub.Recommend(request(unit_ids=ids), timeout=10)
        events = [click("u1", first.items[0].item_id, "e1")]
        await installation.stub.RecordFeedback(pb.RecordFeedbackRequest(events=events), timeout=10)
        assert await asyncio.to_thread(apply_feedback, installation) == 1
        second = await installation.stub.Recommend(request(unit_ids=ids), timeout=10)
        asked = await ExperimentsStub(installation.channel).Assign(
            AssignRequest(user_id="u1", surface="home"), timeout=10
        )
        found = await asyncio.to_thread(records, installation, "decisions", 2)
    assert not first.assignments
    assert [a.experiment for a in second.assignments] == ["for_clickers"]
    assert list(asked.assignments) == list(second.assignments)
    before, after = (DecisionRecord.FromString(record.value) for record in found)
    assert (list(before.segments), before.HasField("before")) == ([], False)
    assert (list(after.segments), known_before(after, 2)) == (["clickers"], 1)
    assert dict(before.unit_ids) == dict(after.unit_ids) == {"household": "h"}


async def test_a_new_experiment_takes_effect_and_a_broken_one_does_not(installation):
    file = installation.settings.router.experiments_file
    text = file.read_text()
    grown = file.with_suffix(".new")

    def replace(new: str) -> None:
        grown.write_text(new)
        grown.rename(file)

    replace(text.replace("{vip: treatment}", "{vip: treatment, u1: treatment}"))
    deadline = time.monotonic() + 20
    while True:
        response = await installation.stub.Recommend(request(), timeout=10)
        if response.assignments[0].overridden:
            break
        assert time.monotonic() < deadline
    before = installation.router._experiments.assigner()
    replace("version: 1\nlayers: [nonsense]\n")
    await until(lambda: REGISTRY.get_sample_value("tandem_experiments_file_ok") == 0)
    assert installation.router._experiments.assigner() is before
    assert (await installation.stub.Recommend(request(), timeout=10)).assignments[0].overridden


async def test_metrics_name_stages_exposures_and_build(installation):
    from prometheus_client import REGISTRY

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def exposed() -> float:
        arms = ("control", "treatment")
        name = "tandem_router_exposures_total"
        return sum(value(name, experiment="like_weight", arm=arm) for arm in arms)

    exposed_before = exposed()
    ranked = value("tandem_router_stage_seconds_count", stage="rank")
    await installation.stub.Recommend(request(), timeout=10)
    await until(lambda: exposed() == exposed_before + 1)
    assert value("tandem_router_stage_seconds_count", stage="rank") == ranked + 1
    families = {family.name for family in REGISTRY.collect()}
    assert families >= {
        "tandem_build_info",
        "tandem_rpc_requests",
        "tandem_batch_rows",
        "tandem_queue_rows",
        "tandem_router_degradations",
        "tandem_router_feature_age_seconds",
        "tandem_balancer_replicas",
    }


async def test_a_router_begins_as_soon_as_it_has_items_to_answer_with(small_settings, tmp_path):
    settings = small_settings.model_copy(update={"artifacts_dir": tmp_path / "artifacts"})
    log = EventLogSettings(url=f"log://{tmp_path}/empty")
    settings = settings.model_copy(update={"event_log": log, "run_dir": tmp_path / "run"})
    beginning = asyncio.create_task(known_in_force(settings, asyncio.Event()))
    await asyncio.to_thread(publish_small, settings.artifacts_dir, ["ssl_two_tower"])
    await asyncio.to_thread(feed, settings, small_items())
    known = await asyncio.wait_for(beginning, 20)
    assert known is not None
    assert len(known.catalogue.items) == len(small_items())
    known.close()


async def test_a_router_that_waits_for_items_ends_when_it_is_told_to(small_settings, tmp_path):
    settings = small_settings.model_copy(update={"artifacts_dir": tmp_path / "artifacts"})
    stop = asyncio.Event()
    stop.set()
    assert await asyncio.wait_for(known_in_force(settings, stop), 20) is None
