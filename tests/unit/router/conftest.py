"""A small catalogue and a request to work on."""

from __future__ import annotations

import numpy as np
import pytest

from models.catalogue import ItemTable
from models.schema import ITEM_DTYPE
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.experiments.declare.parameters import Parameters
from services.router.request import Budget, Candidates, RequestState


@pytest.fixture(scope="session")
def items() -> ItemTable:
    """Forty items; item i (1..40) has id "m<i>", genre i % 4 and 100 - i clicks."""
    features = np.zeros(40, ITEM_DTYPE)
    for i in range(40):
        features[i]["genres"][1 + i % 4] = 1
        features[i]["train_clicks"] = 99 - i
    return ItemTable.build([f"m{i}" for i in range(1, 41)], features)


@pytest.fixture
def state() -> RequestState:
    request = RecommendRequest(user_id="u", surface="home", num_items=5)
    return RequestState(request, "r", 1_000, Budget(1.0), Parameters())


def candidates_of(items: ItemTable, rows: list[int]) -> Candidates:
    """Candidates of source "model" in the given order, with falling scores."""
    at = np.array(rows, np.int64)
    zeros = np.zeros(len(at), np.uint8)
    scores = np.linspace(1, 0, len(at), dtype=np.float32)
    return Candidates(at, items.keys[at], scores, zeros, zeros, ("model",))
