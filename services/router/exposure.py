"""Which of a request's arms it was an exposure to: those whose parameters it read.

A request is an exposure to an experiment if serving it read any parameter that the experiment
changes. Where none was read both arms did the same, and counting the request would only dilute
what they differ in. What is read is decided by what the stages were asked to do and not by what
came of it: a ranking model that was called and failed was read, or its failures would leave the
experiment that is about them. So the flag of an experiment never depends on its own arm. Retrieval
counts as read from the start: what ends a request before it is the same in every arm.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from protos.tandem.v1 import records_pb2
from protos.tandem.v1.recommender_pb2 import RecommendResponse
from services.common.loop_metrics import LoopCounter
from services.experiments.assign.assignment import Decision
from services.experiments.declare.parameters import EPSILON, NO_EXPLORATION, PLACKETT_LUCE
from services.router.metrics import EXPOSURES

if TYPE_CHECKING:
    from services.router.request import RequestState

MAX_CACHED = 4096
NOT_ASKED = ""  # in place of an exploration kind: nobody looks at rerank.exploration

_RETRIEVAL = frozenset({"retrieval.model", "retrieval.num_candidates"})
_RERANK = frozenset({"rerank.like_weight", "rerank.diversity"})
_EXPLORATION = {
    NOT_ASKED: frozenset[str](),
    NO_EXPLORATION: frozenset({"rerank.exploration"}),
    EPSILON: frozenset({"rerank.exploration", "rerank.epsilon", "rerank.exploration_depth"}),
    PLACKETT_LUCE: frozenset(
        {"rerank.exploration", "rerank.temperature", "rerank.exploration_depth"}
    ),
}


@lru_cache
def parameters_read(
    some_candidates: bool, asked_ranking: bool, ranked: bool, exploration: str
) -> frozenset[str]:
    """Dotted names of the parameters that one way through the pipeline looks at.

    some_candidates: there were candidates to rank. asked_ranking: ranking was called. ranked: it
    answered, so that the value model ordered the list. exploration: the value in force of
    `rerank.exploration`, or NOT_ASKED.
    """
    read = _RETRIEVAL
    if some_candidates:
        read |= {"ranking.enabled"}
    if asked_ranking:
        read |= {"ranking.model"}
    if ranked:
        read |= _RERANK | _EXPLORATION[exploration]
    return read


def read_by(state: RequestState) -> frozenset[str]:
    """The parameters that were read to serve a request, or until it ended without an answer."""
    if state.sides:
        return frozenset().union(*(_read(side, NOT_ASKED) for side in state.sides))
    return _read(state, state.parameters.rerank_exploration)


def _read(state: RequestState, exploration: str) -> frozenset[str]:
    candidates = state.candidates
    return parameters_read(
        candidates is not None and len(candidates.rows) > 0,
        state.asked_ranking,
        state.task_scores is not None,
        exploration,
    )


class Exposure:
    """What all requests with one decision that read the same parameters have in common."""

    __slots__ = ("answer", "counters", "decision", "heads", "messages")

    def __init__(self, decision: Decision, read: frozenset[str], one_sided: str) -> None:
        self.decision = decision  # held, so that its id stays its own (exposure_of)
        self.messages: list[records_pb2.Assignment] = []  # for answer and record
        self.counters: list[LoopCounter] = []  # of the arms that it is an exposure to
        self.heads: dict[tuple[object, ...], bytes] = {}  # of records (record.py)
        for a in decision.assignments:
            unread = bool(a.questions) and a.questions.isdisjoint(read)
            if unread or a.experiment == one_sided:
                self.messages.append(a.unread_message)
                continue
            self.messages.append(a.message)
            if not a.overridden:
                self.counters.append(EXPOSURES.labels(a.experiment, a.arm))
        # What answers begin with, encoded: parsing it costs a third of handing the messages over.
        self.answer = RecommendResponse(assignments=self.messages).SerializeToString()


_exposures: dict[tuple[int, frozenset[str], str], Exposure] = {}


def exposure_of(state: RequestState) -> Exposure:
    """The exposure of a request whose list is made, or that ended without one; kept on its state.
    Used by one thread, as `_exposures` is."""
    if state.exposure is not None:
        return state.exposure
    decision, read = state.decision, read_by(state)
    key = (id(decision), read, state.one_sided)  # a decision cannot be hashed by its contents
    found = _exposures.get(key)
    if found is None:
        if len(_exposures) >= MAX_CACHED:
            _exposures.clear()
        found = _exposures[key] = Exposure(decision, read, state.one_sided)
    state.exposure = found
    return found
