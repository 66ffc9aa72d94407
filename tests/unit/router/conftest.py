"""A small catalogue and a request to work on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.catalogue import ItemTable
from models.data.worlds.films.schema import ITEM_DTYPE
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import ANSWERED
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.router.popularity import Popular
from services.router.request import (
    UNKNOWN,
    Budget,
    Candidates,
    Pool,
    Query,
    Request,
    RequestState,
    Shown,
)
from tests.domains import FILMS, VALUE_MODEL, production


@pytest.fixture(scope="session")
def items() -> ItemTable:
    """Forty items; item i (1..40) has id "m<i>", genre i % 4 and 100 - i clicks."""
    features = np.zeros(40, ITEM_DTYPE)
    features["genres"][:, 0] = 1 + np.arange(40) % 4
    clicks = np.arange(99, 59, -1)
    counts = np.stack([clicks, 0 * clicks], axis=1)
    return ItemTable.build([f"m{i}" for i in range(1, 41)], features, counts)


@pytest.fixture
def query(items: ItemTable) -> Query:
    """Five items for a user of whom nothing is known, by production's parameters."""
    asked = RecommendRequest(user_id="u", surface="home", num_items=5)
    assigner = Assigner(config_reader.parse(b"version: 1\nlayers: []\n", "none.yaml", FILMS))
    request = Request(asked, "r", 1_000, Budget(1.0), assigner)
    blocked, popular = np.zeros(0, np.uint64), Popular.of(items)
    return Query(request, UNKNOWN, production(), items, VALUE_MODEL, blocked, set(), popular)


def without(query: Query, excluded: np.ndarray) -> Query:
    """The query of a user who must not be shown the items of these keys."""
    return query._replace(user=query.user._replace(excluded=excluded.tobytes()))


def candidates_of(items: ItemTable, rows: Sequence[int]) -> Candidates:
    """Candidates of source "model" in the given order, with falling scores."""
    at = np.array(rows, np.int64)
    zeros = np.zeros(len(at), np.uint8)
    scores = np.linspace(1, 0, len(at), dtype=np.float32)
    return Candidates(at, items.keys[at], scores, zeros, zeros, ("model",))


def pool_of(items: ItemTable, rows: Sequence[int]) -> Pool:
    return Pool(candidates_of(items, rows), len(rows))


def answered(query: Query, shown: Shown) -> RequestState:
    """A request whose answer is out."""
    return RequestState(request=query.request, user=query.user, shown=shown, outcome=ANSWERED)
