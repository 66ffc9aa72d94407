"""One request on its way through the router, as values that do not change.

    Request    what was asked, when, and how much time there is
    User       what the feature store knows of who asked               hydrate
    Query      both, and the parameters of one ranking: what the next stages work with
    Pool       the candidates that may be shown, best first            retrieve, filter
    Ranking    a pool and what the ranking model says of it            rank
    Shown      the list, and the ranking that it was chosen from       rerank, interleave

A request that shows two rankings as one list has two queries. RequestState is the request as a
whole, as far as it has come. Arrays are parallel: position i of every array of candidates is one
candidate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from feature_store.codec import RowStatus
from feature_store.reader import NO_AGE_S, ServedRaw
from models.catalogue import ItemTable
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import Degradation, Interleaving, Outcome
from services.common.packed import U8
from services.common.value_model import ValueFunction, ValueModel
from services.experiments.assign.assignment import Assigner, Decision
from services.experiments.declare.parameters import RETRIEVE, Parameters
from services.experiments.lists.exploration import ExploredList
from services.router.exposure import Exposure, exposure_of
from services.router.popularity import NOTHING as NOTHING_POPULAR
from services.router.popularity import Popular
from services.router.user_rows import Numbers

Degradations = tuple[Degradation, ...]

NO_ROW = ServedRaw(b"", NO_AGE_S, RowStatus.MISSING)
UNASSIGNED = Decision(  # before the stage assign: nothing is ordered by it
    assignments=(), messages=(), parameters=Parameters(), overrides={}
)


class Budget:
    """What is left of the request's time. All in seconds on the monotonic clock.

    `ran_out`: a stage was lost for lack of time, or of room in the service that it asked.
    """

    __slots__ = ("_end", "ran_out")

    def __init__(self, total_s: float) -> None:
        self._end = time.monotonic() + total_s
        self.ran_out = False

    def stage(self, limit_s: float) -> float:
        """A stage's timeout: its own limit or what is left, whichever is smaller."""
        return min(limit_s, self._end - time.monotonic())


class Request(NamedTuple):
    asked: RecommendRequest
    request_id: str
    now_ms: int
    budget: Budget
    assigner: Assigner  # that was in force when the request came
    schema_revision: int = 0  # `Layout.revision` of the rows by which it is answered


class User(NamedTuple):
    """Who asked: the rows that are served, and what of it goes where."""

    profile: ServedRaw
    history: ServedRaw
    # Fields of the UserContext that both model services need: a message would be copied into each.
    context: Mapping[str, Any]
    numbers: Numbers | None = None  # None: no fresh profile
    excluded: bytes = b""  # packed uint64 keys that this user must not be shown
    degradations: Degradations = ()

    @property
    def excluded_keys(self) -> np.ndarray:
        """uint64 keys of what this user has seen or the caller excluded, ascending."""
        return np.sort(np.frombuffer(self.excluded, U8))

    @property
    def feature_age_s(self) -> dict[str, float]:
        """Age by feature group; NO_AGE_S where defaults are served."""
        return {"profile": self.profile.age_s, "history": self.history.age_s}


UNKNOWN = User(NO_ROW, NO_ROW, {})  # before the stage hydrate


class Query(NamedTuple):
    """What is to be found and ranked, for whom, among what."""

    request: Request
    user: User
    parameters: Parameters
    items: ItemTable
    value_model: ValueModel
    blocked: np.ndarray  # uint64 keys, ascending, of items that nobody is shown
    read: set[str]  # steps at which parameters were read so far (`ParameterSpec.read_in`)
    popular: Popular = NOTHING_POPULAR

    @property
    def value(self) -> ValueFunction:
        """By what items are ordered on the request's surface."""
        return self.value_model.of(self.request.asked.surface)

    @property
    def num_items(self) -> int:
        """How many items the list should have."""
        return self.request.asked.num_items

    @property
    def wanted(self) -> int:
        """How many candidates are worth ranking."""
        return max(self.parameters.retrieval_num_candidates, self.num_items)


class Candidates(NamedTuple):
    """n candidates, best first."""

    rows: np.ndarray  # integers [n], rows of the router's item table
    keys: np.ndarray  # uint64[n]
    scores: np.ndarray  # float32[n], retrieval scores
    source: np.ndarray  # uint8[n], index into `sources`
    interest: np.ndarray  # uint8[n]
    sources: tuple[str, ...]
    screened: bool = False  # all known, none that this user must not be shown

    def take(self, at: np.ndarray) -> Candidates:
        """The candidates at the given positions, in that order."""
        return Candidates(
            self.rows.take(at),
            self.keys.take(at),
            self.scores.take(at),
            self.source.take(at),
            self.interest.take(at),
            self.sources,
            self.screened,
        )

    def then(self, others: Candidates) -> Candidates:
        """These and after them the others; what is in both is there twice."""
        sources = self.sources + tuple([s for s in others.sources if s not in self.sources])
        place = np.array([sources.index(source) for source in others.sources], np.uint8)
        return Candidates(
            np.concatenate([self.rows, others.rows]),
            np.concatenate([self.keys, others.keys]),
            np.concatenate([self.scores, others.scores]),
            np.concatenate([self.source, place.take(others.source)]),
            np.concatenate([self.interest, others.interest]),
            sources,
        )


class Pool(NamedTuple):
    """The candidates that may be shown, and how they were found."""

    candidates: Candidates
    retrieved: int  # candidates before the filter
    version: str | None = None  # of candidate generation; None: it has not answered
    filtered: int = 0  # candidates that it removed
    degradations: Degradations = ()


class Ranking(NamedTuple):
    """A pool, and what the ranking model says of its candidates."""

    pool: Pool
    tasks: tuple[str, ...] = ()
    task_scores: np.ndarray | None = None  # float32[n, tasks]; None: unranked
    version: str | None = None  # of ranking; None: it has not answered, or was not asked
    degradations: Degradations = ()  # the pool's, too

    @property
    def model_versions(self) -> dict[str, str]:
        """By service that answered."""
        versions = {"candidate_generation": self.pool.version, "ranking": self.version}
        return {service: version for service, version in versions.items() if version is not None}


class Draw(NamedTuple):
    """How a list was drawn from a ranking."""

    ranked: np.ndarray  # int[m] positions among the candidates: that ranking, best first
    explored: ExploredList  # its positions are places in the ranking


class Shown(NamedTuple):
    """A list of k items, and what it was chosen from."""

    ranking: Ranking
    parameters: Parameters  # that it was made by
    positions: np.ndarray  # int[k], of the items among the candidates
    scores: np.ndarray  # float32[k], the value model's
    item_ids: Sequence[str]
    degradations: Degradations = ()  # of the whole request, each once
    draw: Draw | None = None  # None: the list is deterministic
    interleaving: Interleaving | None = None  # None: the list is one ranking's
    one_sided: str = ""  # interleaving experiment whose list is one side's, the other's being lost

    # Made at each look: the answer itself needs none of it, the record all, once.

    @property
    def source(self) -> np.ndarray:
        """uint8[k], index into the candidates' sources."""
        return self.ranking.pool.candidates.source.take(self.positions)

    @property
    def interest(self) -> np.ndarray:
        """uint8[k]."""
        return self.ranking.pool.candidates.interest.take(self.positions)

    @property
    def task_scores(self) -> np.ndarray | None:
        """float32[k, tasks]; None: unranked."""
        scores = self.ranking.task_scores
        return None if scores is None else scores.take(self.positions, axis=0)


def show(
    ranking: Ranking,
    positions: np.ndarray,
    scores: np.ndarray,
    query: Query,
    draw: Draw | None = None,
    interleaving: Interleaving | None = None,
    one_sided: str = "",
) -> Shown:
    """The list of the candidates at `positions` int[k]; scores: float32[n], those of all."""
    ids = query.items.ids
    lost = query.user.degradations + ranking.degradations
    return Shown(
        ranking=ranking,
        parameters=query.parameters,
        positions=positions,
        scores=scores.take(positions),
        item_ids=[ids[row] for row in ranking.pool.candidates.rows.take(positions).tolist()],
        degradations=tuple(dict.fromkeys(lost)) if lost else (),
        draw=draw,
        interleaving=interleaving,
        one_sided=one_sided,
    )


@dataclass(kw_only=True, slots=True)
class RequestState:
    """A request as a whole, as far as it has come."""

    request: Request
    decision: Decision = UNASSIGNED
    user: User = UNKNOWN
    ranking: Ranking | None = None  # where there is one only; without scores until it is ranked
    shown: Shown | None = None
    outcome: Outcome | None = None  # None: it is not over
    read: set[str] = field(default_factory=lambda: {RETRIEVE})  # see Query
    stage_ms: dict[str, float] = field(default_factory=dict)

    _exposure: Exposure | None = None

    @property
    def exposure(self) -> Exposure:
        """Of a request whose list is made, or that is over without one."""
        if self._exposure is None:
            one_sided = self.shown.one_sided if self.shown is not None else ""
            self._exposure = exposure_of(self.decision, frozenset(self.read), one_sided)
        return self._exposure
