"""One request on its way through the router: what is known so far.

Each stage (assign, hydrate, retrieve, filter, rank, rerank, respond: one file each) reads and
fills its part. Arrays are parallel: position i of every candidate array is one candidate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from feature_store.codec import RowStatus
from feature_store.reader import NO_AGE_S, ServedRaw
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import ANSWERED, Degradation, Interleaving, Outcome
from services.common.packed import U8
from services.experiments.assign.assignment import Assigner, Decision
from services.experiments.declare.parameters import Parameters
from services.experiments.lists.exploration import ExploredList

if TYPE_CHECKING:
    from services.router.exposure import Exposure

POPULAR = "popular"
NO_ROW = ServedRaw(b"", NO_AGE_S, RowStatus.MISSING)
PRODUCTION = Parameters()
UNASSIGNED = Decision(  # before the stage assign
    assignments=(), messages=(), parameters=PRODUCTION, overrides={}
)


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


class Pool(NamedTuple):
    """The ranking that an explored list was drawn from, best first."""

    positions: np.ndarray  # int[n] among the candidates, as long as those are not cut
    keys: np.ndarray | None = None  # uint64[n], once they are
    task_scores: np.ndarray | None = None  # float32[n, tasks]

    def among(self, keys: np.ndarray, task_scores: np.ndarray | None) -> Pool:
        """With the keys and task scores of its places among all candidates' [m] and [m, tasks]."""
        at = self.positions
        scores = None if task_scores is None else task_scores.take(at, axis=0)
        return Pool(at, keys.take(at), scores)


class Budget:
    """What is left of the request's time. All in seconds on the monotonic clock.

    `ran_out`: a stage was lost for lack of time, or of room in the service that it asked.
    """

    __slots__ = ("_end", "ran_out")

    def __init__(self, total_s: float) -> None:
        self._end = time.monotonic() + total_s
        self.ran_out = False

    def left(self) -> float:
        return self._end - time.monotonic()

    def stage(self, limit_s: float) -> float:
        """A stage's timeout: its own limit or what is left, whichever is smaller."""
        return min(limit_s, self._end - time.monotonic())


@dataclass(slots=True)
class RequestState:
    """Everything decided for one request; the decision record is written from it."""

    request: RecommendRequest
    request_id: str
    now_ms: int
    budget: Budget
    parameters: Parameters = PRODUCTION  # of the list that is served
    assigner: Assigner | None = None  # that was in force when the request came
    decision: Decision = UNASSIGNED
    outcome: Outcome = ANSWERED
    profile: ServedRaw = NO_ROW
    history: ServedRaw = NO_ROW
    excluded: bytes = b""  # packed uint64 keys that this user must not be shown
    candidates: Candidates | None = None
    retrieved: int = 0  # candidates before the filter
    filtered: int = 0  # candidates it removed
    asked_ranking: bool = False  # whether ranking was called, with or without success
    tasks: tuple[str, ...] = ()
    task_scores: np.ndarray | None = None  # float32[n, tasks], None: unranked
    final: np.ndarray | None = None  # positions of the final list among the candidates; None: cut
    scores: np.ndarray | None = None  # float32[items], the value model's, of the final list
    item_ids: Sequence[str] = ()  # of the final list
    explored: ExploredList | None = None  # how the list was drawn; None: it is deterministic
    pool: Pool | None = None  # what an explored list was drawn from
    sides: tuple[RequestState, ...] = ()  # both rankings' of an interleaved request: A's, then B's
    interleaving: Interleaving | None = None  # None: the list is one ranking's
    exposure: Exposure | None = None  # once it is known (exposure.py)
    one_sided: str = ""  # interleaving experiment whose list is one side's, the other's being lost
    model_versions: dict[str, str] = field(default_factory=dict)
    stage_ms: dict[str, float] = field(default_factory=dict)
    degradations: list[Degradation] = field(default_factory=list)

    @property
    def excluded_keys(self) -> np.ndarray:
        """uint64 keys of what this user has seen or the caller excluded, ascending."""
        return np.sort(np.frombuffer(self.excluded, U8))

    @property
    def feature_age_s(self) -> dict[str, float]:
        """Age by feature group; NO_AGE_S where defaults are served."""
        return {"profile": self.profile.age_s, "history": self.history.age_s}

    @property
    def wanted(self) -> int:
        """How many candidates are worth ranking."""
        return max(self.parameters.retrieval_num_candidates, self.request.num_items)

    def cut(self) -> None:
        """Leave the final list alone in the candidate arrays; a second call changes nothing.

        The answer itself needs no more than items and scores: this is for those who look closer,
        mostly after the answer has gone out.
        """
        if self.final is None:
            return
        assert self.candidates is not None
        if self.pool is not None:
            self.pool = self.pool.among(self.candidates.keys, self.task_scores)
        self.candidates = self.candidates.take(self.final)
        if self.task_scores is not None:
            self.task_scores = self.task_scores.take(self.final, axis=0)
        self.final = None

    def side(self, parameters: Parameters) -> RequestState:
        """The same hydrated request on its way to another ranking."""
        return replace(self, parameters=parameters, model_versions={}, degradations=[])

    def degrade(self, degradation: Degradation) -> None:
        if degradation not in self.degradations:
            self.degradations.append(degradation)
