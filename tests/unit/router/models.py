"""The services behind the router, in this process: each model's answer is known beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from feature_store import codec
from feature_store.interface import FeatureStoreUnavailable
from models.catalogue import ItemTable
from models.data.worlds.films.schema import COUNTS, PROFILE, SCHEMA
from protos.tandem.v1.candidate_generation_pb2 import RetrieveResponse
from protos.tandem.v1.ranking_pb2 import RankResponse
from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from services.common.balancer import NoReplica
from services.common.settings import RouterSettings
from services.common.value_model import ValueModel
from services.experiments.assign.assignment import Assigner, Decision
from services.experiments.declare import config_reader
from services.router.pipeline import begin, recommend
from services.router.popularity import Popular
from services.router.recent_feedback import RecentFeedback
from services.router.request import UNASSIGNED, RequestState
from services.router.surroundings import Surroundings
from services.router.user_rows import UserRows
from tests.domains import FILMS, VALUE_MODEL, production

NOW_MS = 1_900_000_000_000


class Models:
    """Both model services. A retrieval model finds its rows; a ranking model gives an item of row r
    the click probability `ranks[model][r]`, and the tasks that `tasks` says; none knows the rows
    `unknown`. Models in `down` have no replica."""

    def __init__(
        self,
        items: ItemTable,
        found: Mapping[str, Sequence[int]],
        ranks: Mapping[str, Mapping[int, float]],
        down: Sequence[str] = (),
        tasks: Mapping[str, Sequence[str]] | None = None,
        unknown: Sequence[int] = (),
    ) -> None:
        self._items, self._found, self._ranks = items, found, ranks
        self.down, self._tasks = set(down), tasks or {}
        self._unknown = items.keys[list(unknown)]
        self.calls: list[tuple[str, str]] = []

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        self.calls.append((method, request.model))
        if request.model in self.down:
            raise NoReplica(request.model)
        if method == "Retrieve":
            return self._retrieved(request.model, request.num_candidates)
        return self._ranked(request.model, np.frombuffer(request.item_keys, "<u8"))

    def _retrieved(self, model: str, count: int) -> RetrieveResponse:
        rows = np.array(self._found[model][:count], np.int64)
        return RetrieveResponse(
            item_keys=self._items.keys[rows].tobytes(),
            scores=np.linspace(1, 0, len(rows), dtype=np.float32).tobytes(),
            interest_index=bytes(len(rows)),
            sources=[model],
            source_index=bytes(len(rows)),
            model_version=f"{model}-1",
        )

    def _ranked(self, model: str, keys: np.ndarray) -> RankResponse:
        tasks = self._tasks.get(model, ("click", "like"))
        clicks = [self._ranks[model].get(int(r), 0.0) for r in self._items.index_of(keys)]
        scores = np.zeros((len(keys), len(tasks)), np.float32)
        scores[:, tasks.index("click")] = clicks
        return RankResponse(
            tasks=tasks,
            task_scores=scores.tobytes(),
            unknown_items=int(np.isin(keys, self._unknown).sum()),
            model_version=f"{model}-1",
        )


class Stuck:
    """A model service that never answers, or fails in a way that nobody foresaw. `hanging` says
    whether that has been noticed."""

    def __init__(self, error: Exception | None = None, hanging: bool = False) -> None:
        self.hanging = hanging
        self.calls = 0
        self.asked = asyncio.Event()
        self.error = error

    def hangs(self, now_s: float) -> bool:
        return self.hanging

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        self.calls += 1
        self.asked.set()
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


class Store:
    """A feature store that holds the profiles of the given users; None: it is out of order."""

    def __init__(self, counts: Mapping[str, tuple[int, int, int]] | None = None) -> None:
        self.counts = counts
        self.reads = 0

    async def read_async(self, keys: list[Any], timeout_s: float) -> list[bytes | None]:
        self.reads += 1
        if self.counts is None:
            raise FeatureStoreUnavailable("out of order")
        return [
            profile_row(*self.counts[key.entity_id])
            if key.group == PROFILE.name and key.entity_id in self.counts
            else None
            for key in keys
        ]


def profile_row(impressions: int, clicks: int, likes: int, at_ms: int = NOW_MS) -> bytes:
    record = PROFILE.defaults()
    for column, count in zip(COUNTS, (impressions, clicks, likes), strict=True):
        record[column] = count
    record["last_event_ms"] = 4_000_000_000_000  # not to be taken for a count
    return codec.encode(PROFILE, record, at_ms, 1)


IN_NO_EXPERIMENT = replace(UNASSIGNED, parameters=production())


class FixedAssigner(Assigner):
    """Gives everybody one decision and keeps what it was asked."""

    def __init__(self, decision: Decision, *, needs_user: bool = False) -> None:
        super().__init__(config_reader.parse(b"version: 1\nlayers: []\n", "none.yaml", FILMS))
        self.decision, self.needs_user = decision, needs_user
        self.asked: list[dict[str, Any]] = []

    def assign(self, user_id: str, session_id: str = "", **known: Any) -> Decision:
        self.asked.append({"user_id": user_id, "session_id": session_id, **known})
        return self.decision


def surroundings(
    items: ItemTable,
    models: Any,
    assigner: Assigner,
    store: Store | None = None,
    settings: RouterSettings | None = None,
    value_model: ValueModel = VALUE_MODEL,
) -> Surroundings:
    return Surroundings(
        rows=UserRows(SCHEMA),
        store=store or Store({}),  # type: ignore[arg-type]
        recent=RecentFeedback(SCHEMA, lambda: items),
        candidate_generation=models,
        ranking=models,
        items=lambda: items,
        popular=lambda: Popular.of(items),
        value_model=value_model,
        blocked=lambda: np.zeros(0, np.uint64),
        assigner=lambda: assigner,
        settings=settings or RouterSettings(),
        clock=lambda: NOW_MS / 1000,
    )


def decision_of(text: str, user_id: str = "u") -> Decision:
    """What an experiments file decides for a user at NOW_MS."""
    assigner = Assigner(config_reader.parse(text.encode(), "test.yaml", FILMS))
    return assigner.assign(user_id, now_ms=NOW_MS, surface="home")


async def answer_to(
    request: RecommendRequest, around: Surroundings
) -> tuple[RecommendResponse, RequestState]:
    """The answer to a request that has a second, and what was decided."""
    state = begin(request, 1.0, around)
    return await recommend(state, around), state
