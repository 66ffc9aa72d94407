"""The benchmarks' requests are ones that the services accept, and degraded answers are told."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from load_tests.serving import traffic
from load_tests.serving.temporary_installation import free_ports, overrides
from models.data.worlds.films.schema import SCHEMA
from protos.tandem.v1.recommender_pb2 import (
    RecommendRequest,
    RecommendResponse,
    RecordFeedbackRequest,
)
from protos.tandem.v1.records_pb2 import POPULAR_FALLBACK, UNRANKED
from services.common.settings import Settings
from services.common.validate import check_recommend
from services.feedback.ingest import check_events


def test_mixed_traffic_is_valid_and_no_event_id_comes_twice() -> None:
    methods: Counter[str] = Counter()
    event_ids, users = [], set()
    surfaces = SCHEMA.declaration.surface_names
    for i in range(400):
        method, message = traffic.mixed(i)
        methods[method] += 1
        if method == traffic.RECOMMEND:
            request = RecommendRequest.FromString(message)
            check_recommend(request, surfaces)
            users.add(request.user_id)
        else:
            events = RecordFeedbackRequest.FromString(message).events
            now_ms = int(time.time() * 1000)
            check_events(
                events,
                now_ms,
                SCHEMA.accepted,
                max_events=1000,
                oldest_ms=now_ms - 60_000,
                latest_ms=now_ms + 60_000,
            )
            event_ids += [event.event_id for event in events]
            users |= {event.user_id for event in events}
    assert methods == {traffic.RECOMMEND: 300, traffic.FEEDBACK: 100}
    assert len(set(event_ids)) == len(event_ids) == 100 * traffic.EVENTS
    assert len(users) > 300


def test_a_degraded_answer_is_told_from_a_full_one() -> None:
    def judged(*degradations: int) -> str:
        answer = RecommendResponse(degradations=degradations)  # type: ignore[arg-type]
        return traffic.judge(traffic.RECOMMEND, answer.SerializeToString())

    assert judged() == "OK"
    assert judged(POPULAR_FALLBACK, UNRANKED) == "popular_fallback unranked"


def test_a_temporary_installation_shares_no_place_and_no_port_with_the_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Settings()
    for name, value in overrides(given, tmp_path).items():
        monkeypatch.setenv(name, value)
    moved = Settings()
    assert moved.artifacts_dir == given.artifacts_dir.resolve()
    assert moved.run_dir == tmp_path
    assert moved.feature_store.url == f"lmdb://{tmp_path}/features"
    assert moved.event_log.url == f"log://{tmp_path}/events"
    ports = [
        moved.router.port,
        moved.router.metrics_port,
        moved.feedback.updater_metrics_port,
        moved.experiments.metrics_port,
    ]
    assert len(set(ports)) == 4
    assert moved.ranking == given.ranking


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20
