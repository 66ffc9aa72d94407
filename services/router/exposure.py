"""Which of a request's arms it was an exposure to: those whose parameters it read.

A request is an exposure to an experiment if serving it read any parameter that the experiment
changes. Where none was read both arms did the same, and counting the request would only dilute
what they differ in. What is read is decided by what the stages were asked to do and not by what
came of it: a ranking model that was called and failed was read, or its failures would leave the
experiment that is about them. So the flag of an experiment never depends on its own arm. Retrieval
counts as read from the start: what ends a request before it is the same in every arm.

The stages note the steps that they take (`Query.read`); which step reads which parameter stands
with the parameters (`ParameterSpec.read_in`), and so with each arm (`Assignment.read_in`).
"""

from __future__ import annotations

from protos.tandem.v1 import records_pb2
from protos.tandem.v1.recommender_pb2 import RecommendResponse
from services.experiments.assign.assignment import Decision

MAX_CACHED = 4096


class Exposure:
    """What all requests with one decision that took the same steps have in common."""

    __slots__ = ("answer", "arms", "decision", "heads", "messages")

    def __init__(self, decision: Decision, steps: frozenset[str], one_sided: str) -> None:
        self.decision = decision  # held, so that its id stays its own (exposure_of)
        self.messages: list[records_pb2.Assignment] = []  # for answer and record
        self.arms: list[tuple[str, str]] = []  # experiment and arm that it is an exposure to
        self.heads: dict[tuple[object, ...], bytes] = {}  # of records (record.py)
        for a in decision.assignments:
            unread = bool(a.read_in) and a.read_in.isdisjoint(steps)
            if unread or a.experiment == one_sided:
                self.messages.append(a.unread_message)
                continue
            self.messages.append(a.message)
            if not a.overridden:
                self.arms.append((a.experiment, a.arm))
        # What answers begin with, encoded: parsing it costs a third of handing the messages over.
        self.answer = RecommendResponse(assignments=self.messages).SerializeToString()


_exposures: dict[tuple[int, frozenset[str], str], Exposure] = {}


def exposure_of(decision: Decision, steps: frozenset[str], one_sided: str) -> Exposure:
    """The exposure of a request that took these steps; `one_sided`: the interleaving experiment
    that its list says nothing about. Used by one thread, as `_exposures` is."""
    key = (id(decision), steps, one_sided)  # a decision cannot be hashed by its contents
    found = _exposures.get(key)
    if found is None:
        if len(_exposures) >= MAX_CACHED:
            _exposures.clear()
        found = _exposures[key] = Exposure(decision, steps, one_sided)
    return found
