"""Any of the six models answers when an experiment's arm asks for it, as that model would."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from prometheus_client import REGISTRY

from feature_store.connect import connect as connect_store
from feature_store.interface import RowKey
from feature_store.reader import serve_many, serve_raw
from load_tests.demo.data import backfill
from models import artifact
from models.catalogue import item_key
from models.data.backfill import FeatureState, Interaction
from models.data.worlds.films.schema import (
    CLICK,
    COUNTERS,
    FOLD,
    GROUPS,
    HISTORY,
    IMPRESSION,
    LIKE,
    MODEL_HISTORY,
    PROFILE,
    SCHEMA,
)
from models.serving import load_ranking, load_retrieval
from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.records_pb2 import POPULAR_FALLBACK, UNRANKED
from services.common.model_service.user_context import batch_of_users
from services.common.settings import CandidateGenerationSettings, RankingSettings, Settings
from tests.artifacts import publish_small, small_items
from tests.integration.conftest import InProcess, running

RETRIEVAL = ("hcn_r", "desmil_r", "ssl_two_tower")
RANKING = ("infnet", "masknet", "mc_mlcc")
ITEMS = small_items()
SEEN = ("m3", "m8", "m12", "m21")  # of every user, so that interests have something to differ in
NOBODY = ("none_r", "none_k")  # names that nobody serves


def name_of(retrieval: str, ranking: str) -> str:
    """The user whose arms ask for these models."""
    return f"{retrieval}+{ranking}"


USERS = [name_of(*pair) for pair in itertools.product(RETRIEVAL, RANKING)]


def layer(name: str, parameter: str, models: tuple[str, ...], allowed: dict[str, str]) -> Any:
    arms = [
        {"name": model, "weight": 100 if i == 0 else 0, "parameters": {parameter: model}}
        for i, model in enumerate(models)
    ]
    experiment = {"name": f"{name}_model", "arms": arms, "allow_list": allowed}
    return {"name": name, "parameters": [parameter], "experiments": [experiment]}


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("six")
    publish_small(folder, (*RETRIEVAL, *RANKING), items=ITEMS)
    return folder


@pytest.fixture
def settings(small_settings: Settings, six: Path) -> Settings:
    """All six served, and users with a history."""
    retrieval, ranking = (*RETRIEVAL, NOBODY[0]), (*RANKING, NOBODY[1])
    lost = {"lost+infnet": NOBODY[0]}, {"hcn_r+lost": NOBODY[1]}
    document = {
        "version": 1,
        "layers": [
            layer("found", "retrieval.model", retrieval,
                  {u: u.split("+")[0] for u in (*USERS, "hcn_r+lost")} | lost[0]),
            layer("ranked", "ranking.model", ranking,
                  {u: u.split("+")[1] for u in (*USERS, "lost+infnet")} | lost[1]),
        ],
    }  # fmt: skip
    small_settings.router.experiments_file.write_text(yaml.safe_dump(document))
    settings = small_settings.model_copy(
        update={
            "artifacts_dir": six,
            "candidate_generation": CandidateGenerationSettings(models=RETRIEVAL),
            "ranking": RankingSettings(models=RANKING, precision="float32"),
        }
    )
    state = FeatureState(FOLD)
    started = int(time.time() * 1000) - 3_600_000
    for user in USERS:
        for minute, item in enumerate(SEEN):
            happened = Interaction(
                user, item, item_key(item), started + minute * 60_000, (IMPRESSION, CLICK, LIKE)
            )
            state.apply(happened, ITEMS.values_of(np.array([int(item[1:])]), FOLD.item_fields)[0])
    backfill(settings, ITEMS, state)
    return settings


async def ask(installation: InProcess, user: str) -> pb.RecommendResponse:
    """All items that the user has not seen."""
    request = pb.RecommendRequest(
        user_id=user,
        surface="home",
        num_items=len(ITEMS) - (len(SEEN) if user in USERS else 0),
        explain=True,
    )
    return await installation.stub.Recommend(request, timeout=20)


def context_of(
    settings: Settings, user: str, columns: Sequence[str]
) -> tuple[UserContext, np.ndarray]:
    """What the router knows of a user, and these counts of every item, by row."""
    store = connect_store(
        settings.feature_store.url, GROUPS, installation=None, timeout_ms=50, lmdb_map_size_mb=64
    )
    now_ms = int(time.time() * 1000)
    try:
        profile, history = (
            serve_raw(group, row, now_ms).row
            for group, row in zip(
                (PROFILE, HISTORY),
                store.read([RowKey(g.name, user) for g in (PROFILE, HISTORY)]),
                strict=True,
            )
        )
        rows = store.read([RowKey(COUNTERS.name, item_id) for item_id in ITEMS.ids[1:]])
        counters = FOLD.counters_at(serve_many(COUNTERS, rows, now_ms).records, now_ms, columns)
    finally:
        store.close()
    context = UserContext(
        user_id=user, surface="home", now_ms=now_ms, profile_row=profile, history_row=history
    )
    return context, np.concatenate([np.zeros_like(counters[:1]), counters])


@torch.inference_mode()
def brute_force(
    settings: Settings, user: str, retrieval: str, ranking: str
) -> dict[str, tuple[float, int, tuple[float, ...]]]:
    """item id -> (match, interest, task scores), item by item, from the published folders."""
    found = load_retrieval(artifact.current(settings.artifacts_dir, retrieval))
    ranked = load_ranking(artifact.current(settings.artifacts_dir, ranking)).model
    context, counters = context_of(settings, user, ranked.counters)
    batch = batch_of_users([context], SCHEMA, ITEMS, MODEL_HISTORY)
    interests = found.model.encode_users(batch)[0]
    assert len(interests) == found.model.num_interests
    expected = {}
    for row in range(1, len(ITEMS) + 1):
        matches = [float(interest @ found.item_vectors[row]) for interest in interests]
        best = max(range(len(matches)), key=matches.__getitem__)
        tasks = ranked.score(
            ranked.user_part(batch),
            torch.zeros(1, dtype=torch.int64),
            torch.tensor([row]),
            torch.from_numpy(counters[row : row + 1]),
        )
        expected[ITEMS.ids[row]] = (matches[best], best, tuple(tasks[0].tolist()))
    return expected


async def test_each_of_the_six_models_answers_as_it_would_alone(settings: Settings) -> None:
    async with running(settings) as installation:
        answers = {user: await ask(installation, user) for user in USERS}
    for (retrieval, ranking), answer in zip(
        itertools.product(RETRIEVAL, RANKING), answers.values(), strict=True
    ):
        user = name_of(retrieval, ranking)
        expected = brute_force(settings, user, retrieval, ranking)
        assert not answer.degradations, user
        assert answer.explanation.model_versions == {
            "candidate_generation": artifact.current(settings.artifacts_dir, retrieval).name,
            "ranking": artifact.current(settings.artifacts_dir, ranking).name,
        }
        assert {item.item_id for item in answer.items} == set(ITEMS.ids[1:]) - set(SEEN)
        for item in answer.items:
            match, interest, tasks = expected[item.item_id]
            assert item.reason.source == retrieval
            assert item.reason.retrieval_score == pytest.approx(match, rel=1e-3, abs=1e-4)
            assert item.reason.interest_index == interest
            got = item.reason.task_scores
            assert (got["click"], got["like"]) == pytest.approx(tasks, abs=1e-4)


async def test_several_interests_find_the_items_of_a_model_that_has_several(
    settings: Settings,
) -> None:
    async with running(settings) as installation:
        for retrieval in RETRIEVAL:
            answer = await ask(installation, name_of(retrieval, "masknet"))
            used = {item.reason.interest_index for item in answer.items}
            loaded = load_retrieval(artifact.current(settings.artifacts_dir, retrieval))
            assert (len(used) > 1) == (loaded.model.num_interests > 1), retrieval


@pytest.mark.parametrize(
    ("user", "degradation", "stage"),
    [("lost+infnet", POPULAR_FALLBACK, "retrieve"), ("hcn_r+lost", UNRANKED, "rank")],
)
async def test_a_model_that_nobody_serves_degrades_the_answer_and_is_counted(
    settings: Settings, user: str, degradation: int, stage: str
) -> None:
    def refused() -> float:
        labels = {"stage": stage, "status": "NOT_FOUND"}
        return REGISTRY.get_sample_value("tandem_router_stage_failures_total", labels) or 0.0

    before = refused()
    async with running(settings) as installation:
        answer = await ask(installation, user)
    assert list(answer.degradations) == [degradation]
    assert answer.items
    assert refused() == before + 1
