"""Simulated requests with known click probabilities, as decision records and feedback.

A world has some contexts (candidates, what a ranking model says of them, and how attractive they
are, which is another thing), each equally likely. Users come several times, differ in how readily
they click (1 on average), and click by a position-based model. Lists are made by the router's own
`rerank` and recorded by its own `decision_record`, so that what reads the log reads what the router
writes. The true value of any parameters is a sum over all lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from models.catalogue import ItemTable
from models.data.worlds.films.schema import ITEM_DTYPE, SCHEMA
from protos.tandem.v1 import records_pb2
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.common.value_model import ValueModel, order_of
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.experiments.declare.domain import domain_of
from services.experiments.declare.parameters import NO_EXPLORATION, PLACKETT_LUCE, Parameters
from services.experiments.lists.exploration import depth_of, policy, rank_logits
from services.router.record import decision_record
from services.router.request import (
    UNKNOWN,
    Budget,
    Candidates,
    Pool,
    Query,
    Ranking,
    Request,
    RequestState,
)
from services.router.rerank import rerank

FILMS, VALUE_MODEL = domain_of(SCHEMA.declaration), ValueModel(SCHEMA.declaration)
SURFACE = "home"
ITEMS, GENRES, CANDIDATES, PLACES, CONTEXTS = 40, 4, 8, 3, 30
EXAMINATION = np.array([1.0, 0.6, 0.4])
EAGERNESS = np.array([0.2, 1.0, 1.8])
START_MS = 1_700_000_000_000
WINDOW_MS = 1_800_000
TASKS = VALUE_MODEL.tasks

NO_EXPERIMENTS = Assigner(config_reader.parse(b"version: 1\nlayers: []\n", "none.yaml", FILMS))

LOGGING = replace(
    FILMS.parameters.production,
    rerank_exploration=PLACKETT_LUCE,
    rerank_temperature=1.0,
    rerank_exploration_depth=CANDIDATES,
)


@dataclass(frozen=True, eq=False)
class Context:
    """rows int64[c] of the catalogue, task_scores float32[c, 2], attraction float64[c]: the
    probability of a click at a place that is certainly seen."""

    rows: np.ndarray
    task_scores: np.ndarray
    attraction: np.ndarray


@dataclass(frozen=True, eq=False)
class World:
    items: ItemTable
    contexts: tuple[Context, ...]

    @classmethod
    def of(cls, seed: int) -> World:
        generator = np.random.default_rng(seed)
        features = np.zeros(ITEMS, ITEM_DTYPE)
        for i in range(ITEMS):
            features[i]["genres"][0] = 1 + generator.integers(GENRES)
        items = ItemTable.build([f"m{i}" for i in range(ITEMS)], features)
        return cls(items, tuple(_context(generator) for _ in range(CONTEXTS)))

    def value(self, parameters: Parameters) -> float:
        """Expected clicks per request: over all contexts and all lists."""
        lists = np.array(list(permutations(range(CANDIDATES), PLACES)))
        earned = []
        for context in self.contexts:
            order = order_of(
                VALUE_MODEL.of(SURFACE)(TASKS, context.task_scores, parameters.weights),
                parameters.rerank_diversity,
                self.items,
                VALUE_MODEL.diverse_by,
                context.rows,
                depth_of(parameters, PLACES),
            )
            if parameters.rerank_exploration == NO_EXPLORATION:
                earned.append(EXAMINATION @ context.attraction[order])
                continue
            drawn = policy(parameters).propensities(lists, rank_logits(len(order)))
            clicks = context.attraction[order][lists] @ EXAMINATION
            earned.append(drawn.prod(axis=1) @ clicks)
        return float(np.mean(earned))

    def traffic(
        self,
        parameters: Parameters,
        users: int,
        per_user: int,
        generator: np.random.Generator,
        name: str = "u",
    ) -> Iterator[tuple[records_pb2.DecisionRecord, list[records_pb2.FeedbackEvent]]]:
        """Requests, a second apart, each with its clicks."""
        now_ms = START_MS
        for user in range(users):
            eagerness = generator.choice(EAGERNESS)
            for visit in range(per_user):
                context = self.contexts[generator.integers(len(self.contexts))]
                record, clicks = self._request(
                    parameters, context, f"{name}{user}", f"{name}{user}.{visit}", now_ms,
                    eagerness, generator,
                )  # fmt: skip
                yield record, clicks
                now_ms += 1_000

    def _request(
        self,
        parameters: Parameters,
        context: Context,
        user: str,
        request: str,
        now_ms: int,
        eagerness: float,
        generator: np.random.Generator,
    ) -> tuple[records_pb2.DecisionRecord, list[records_pb2.FeedbackEvent]]:
        asked = RecommendRequest(user_id=user, surface=SURFACE, num_items=PLACES)
        asking = Request(asked, request, now_ms, Budget(1.0), NO_EXPERIMENTS)
        blocked = np.zeros(0, np.uint64)
        query = Query(asking, UNKNOWN, parameters, self.items, VALUE_MODEL, blocked, set())
        nothing = np.zeros(len(context.rows), np.uint8)
        candidates = Candidates(
            context.rows,
            self.items.keys[context.rows],
            np.zeros(len(context.rows), np.float32),
            nothing,
            nothing,
            ("model",),
        )
        pool = Pool(candidates, len(context.rows))
        shown = rerank(Ranking(pool, TASKS, context.task_scores), query, generator)
        chance = eagerness * EXAMINATION * context.attraction[shown.positions]
        clicked = np.flatnonzero(generator.random(PLACES) < chance)
        state = RequestState(request=asking, shown=shown, outcome=records_pb2.ANSWERED)
        record = decision_record(state)
        return record, [
            records_pb2.FeedbackEvent(
                event_id=f"{request}.{place}",
                request_id=request,
                user_id=user,
                item_id=record.item_ids[place],
                event_type=records_pb2.CLICK,
                event_time_ms=now_ms + 60_000,
            )
            for place in clicked.tolist()
        ]


def _context(generator: np.random.Generator) -> Context:
    attraction = generator.beta(1.5, 5, CANDIDATES).clip(0.01, 0.5)
    liked = generator.beta(1.5, 4, CANDIDATES).clip(0.01, 0.99)
    known = np.log(attraction) + generator.normal(0, 0.5, CANDIDATES) - 2.5 * liked
    scores = np.stack([1 / (1 + np.exp(-known)), liked], axis=1).astype(np.float32)
    rows = generator.permutation(ITEMS)[:CANDIDATES] + 1
    return Context(rows, scores, attraction)
