"""The part of the event log that an answer can use: explored requests, under a target policy.

Of every decision record in the period it is decided here whether another policy can be evaluated on
it, and if not, why; a request that can be used is reduced to numbers: what was shown, how probable
that was, and how the target would have ranked the same items, by the same `ValueModel` as the
router's: the formula of the request's surface, as it is declared now.
Whether a request is used depends on its context and never on what was drawn or on the feedback, so
that leaving requests out changes of whom an estimate speaks, but makes it not wrong.

A set, like `fold`: a request counts once by its id, an event once by its user and event id, in
whatever order and however often they come; of contents that differ the least counts.

MEMORY. Some 1.5 kB per usable request with a ranking of 50, 200 bytes per event, and 100 per
request that is left out, of the period.

What is not guaranteed: that the target would have had the same items to rank. It ranks those of
the logged ranking, the best `exploration_depth` by the value model of the day; one further down
that the target would have lifted above them is not known to the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xxhash

from models.catalogue import ItemTable, item_key
from protos.tandem.v1 import records_pb2
from services.common.ids import hash_of
from services.common.validate import MAX_ITEMS
from services.common.value_model import LARGEST_SCORE, ValueModel, order_of
from services.event_log.topics import DECISIONS, FEEDBACK
from services.event_log.whole_log import SKEW_MS
from services.experiments.changes import poison
from services.experiments.declare.parameters import (
    EPSILON,
    IN_EVERY_DOMAIN,
    NO_EXPLORATION,
    RANK,
    RETRIEVE,
    STRENGTH_OF,
    TO_RANK,
    ParameterError,
    Parameters,
    ParameterSpecs,
    Value,
    attributes_read_in,
)
from services.experiments.lists.exploration import (
    Exploration,
    ExplorationError,
    PlackettLuce,
    depth_of,
    rank_logits,
)
from services.experiments.lists.exploration import policy as policy_of

# Of recomputed propensities to the recorded ones: those are float32, and so is the strength.
PROPENSITY_TOLERANCE = 1e-3
NOWHERE = -1  # the place of an item that the target's ranking ends before

# What re-ranking cannot change.
NOT_LOGGED = attributes_read_in(RETRIEVE, TO_RANK, RANK)


class LeftOut(Enum):
    """Why a request of the period is not used, in the order in which it is asked."""

    UNANSWERED = "got no answer"
    ELSEWHERE = "not what the experiment is about (its conditions, or the holdout)"
    INTERLEAVED = "two rankings in one list"
    DEGRADED = "degraded: not the list that the parameters ask for"
    UNRANKED = "not ranked by a model"
    UNEXPLORED = "not explored: what it showed was certain"
    NO_RANKING = "its record has no ranking (an older router wrote it)"
    CONTRADICTORY = "its record contradicts itself"
    OLD_PARAMETERS = "by parameters that there are no more"
    OTHER_TASKS = "its scores lack a task that the value formula reads"
    OTHER_MODELS = "by another model or number of candidates than the target asks for"
    UNKNOWN_ITEMS = "its ranking has an item that the catalogue no longer knows"
    UNSUPPORTED = "the target could show what could not be shown"
    OPEN = "its feedback can still come"


class Policy(NamedTuple):
    """How a list is drawn from a ranking of `length`."""

    exploration: Exploration
    length: int

    def propensities(self, positions: np.ndarray) -> np.ndarray:
        """float64[..., k] of lists of positions, each given those above it."""
        return self.exploration.propensities(positions, rank_logits(self.length))

    def marginals(self, count: int) -> np.ndarray:
        """float64[count, length]: of each position at each place. Shared; never to be changed."""
        return _marginals(self, count)


@lru_cache(256)
def _marginals(policy: Policy, count: int) -> np.ndarray:
    return policy.exploration.place_marginals(rank_logits(policy.length), count)


# The ranking itself, as a policy.
IN_ORDER = PlackettLuce(0.0, 1)


class Request(NamedTuple):
    """A usable request with a ranking of m items of which k were shown."""

    request: int
    user: int
    time_ms: int
    keys: np.ndarray  # uint64[k], of the items shown
    places: np.ndarray  # int64[k], theirs in the logged ranking
    propensities: np.ndarray  # float64[k], as recorded
    logging: Policy
    order: np.ndarray  # int64[length of the target's ranking], places in the logged one
    target: Policy

    def target_positions(self) -> np.ndarray:
        """int64[k]: of the shown items in the target's ranking, or NOWHERE."""
        at = np.full(self.logging.length, NOWHERE)
        at[self.order] = np.arange(len(self.order))
        return np.asarray(at[self.places])


class ItemEvent(NamedTuple):
    """Feedback on an item of a list."""

    time_ms: int
    request: int
    key: int
    type: int
    value: float  # that came with it


@dataclass(frozen=True)
class Target:
    """Parameters that the logged requests are to be re-ranked with.

    A request's own parameters hold but for those that the target sets (`overrides`) and those that
    give way to production's (`replaces`: all that the experiment changes, for an arm of it).
    """

    overrides: Mapping[str, Value]
    specs: ParameterSpecs
    replaces: frozenset[str] = frozenset()

    def parameters(self, record: records_pb2.DecisionRecord) -> tuple[Parameters, Parameters]:
        """Those of the request and those of the target for it. Raises ParameterError."""
        specs = self.specs
        as_recorded = {name: specs.value_of(name, text) for name, text in record.parameters.items()}
        logged = specs.changed(specs.production, as_recorded)
        if record.HasField("exploration"):
            logged = _as_explored(logged, record.exploration)
        production = {name: specs.spec_of(name).default for name in self.replaces}
        return logged, specs.with_overrides(specs.changed(logged, production), self.overrides)


def _as_explored(parameters: Parameters, how: records_pb2.Exploration) -> Parameters:
    """`how.kind` may be one that this program does not know: its strength is left out then."""
    named: dict[str, Any] = {}
    if how.kind in STRENGTH_OF:
        named[IN_EVERY_DOMAIN[STRENGTH_OF[how.kind]].attribute] = how.strength
    return replace(
        parameters, rerank_exploration=how.kind, rerank_exploration_depth=how.depth, **named
    )


Concerns: TypeAlias = Callable[[records_pb2.DecisionRecord], bool]


class WhatIfLog:
    """Collects the usable requests of [from_ms, until_ms], and feedback. Used by one thread."""

    def __init__(
        self,
        target: Target,
        items: ItemTable,
        value_model: ValueModel,
        from_ms: float,
        until_ms: float,
        concerns: Concerns = lambda record: True,
    ) -> None:
        self.from_ms, self.until_ms = from_ms, until_ms
        self.undecodable = 0  # records of the whole log, for whoever reads it to count
        self._target, self._items, self._concerns = target, items, concerns
        self._value_model = value_model
        self._requests: dict[int, tuple[int, str, Request | LeftOut]] = {}
        self._events: dict[int, ItemEvent] = {}

    def on_decision(self, record: records_pb2.DecisionRecord) -> None:
        """Add a decision of the period that can be meant (`poison`)."""
        if not self.from_ms <= record.event_time_ms <= self.until_ms:
            return
        if reason := poison.of_decision(record):
            poison.drop(DECISIONS, reason, record.request_id)
            self.undecodable += 1
            return
        key = hash_of(record.request_id)
        content = xxhash.xxh3_64_intdigest(record.SerializeToString(deterministic=True))
        if key not in self._requests or content < self._requests[key][0]:
            found = usable(record, self._target, self._items, self._value_model, self._concerns)
            name = record.request_id if found is LeftOut.CONTRADICTORY else ""
            self._requests[key] = content, name, found

    def on_feedback(self, event: records_pb2.FeedbackEvent) -> None:
        """Add an event of the period that can be meant."""
        if not event.request_id:
            return
        if not self.from_ms - SKEW_MS <= event.event_time_ms <= self.until_ms:
            return
        if reason := poison.of_feedback(event):
            poison.drop(FEEDBACK, reason, event.event_id)
            self.undecodable += 1
            return
        key = hash_of(event.user_id, event.event_id)
        made = ItemEvent(
            event.event_time_ms,
            hash_of(event.request_id),
            item_key(event.item_id),
            event.event_type,
            event.value,
        )
        if key not in self._events or made < self._events[key]:
            self._events[key] = made

    def requests(self) -> list[Request]:
        """The usable ones, in an order that depends on the set only."""
        found = (self._requests[key][2] for key in sorted(self._requests))
        return [request for request in found if isinstance(request, Request)]

    def events(self) -> list[ItemEvent]:
        """In an order that depends on the set only."""
        return sorted(self._events.values())

    def left_out(self) -> Counter[LeftOut]:
        """How many requests of the period are not usable, and why."""
        return Counter(why for *_, why in self._requests.values() if isinstance(why, LeftOut))

    def contradictory(self) -> list[str]:
        """Ids of the requests whose records contradict themselves."""
        return sorted(name for _, name, _ in self._requests.values() if name)


def usable(
    record: records_pb2.DecisionRecord,
    target: Target,
    items: ItemTable,
    value_model: ValueModel,
    concerns: Concerns,
) -> Request | LeftOut:
    """The request as an estimate needs it, or why it cannot be used."""
    if record.outcome != records_pb2.ANSWERED:
        return LeftOut.UNANSWERED
    if not concerns(record):
        return LeftOut.ELSEWHERE
    if record.HasField("interleaving"):
        return LeftOut.INTERLEAVED
    if record.degradations:
        return LeftOut.DEGRADED
    if not record.task_scores or not record.item_ids:
        return LeftOut.UNRANKED
    how = record.exploration
    if not record.HasField("exploration") or not how.strength:
        return LeftOut.UNEXPLORED
    if not how.item_keys or not how.task_scores:
        return LeftOut.NO_RANKING
    if (drawn := _drawn(record)) is None:
        return LeftOut.CONTRADICTORY
    try:
        logged, parameters = target.parameters(record)
    except ParameterError:
        return LeftOut.OLD_PARAMETERS
    tasks, value = tuple(record.tasks), value_model.of(record.surface)
    if value.lacking(tasks):
        return LeftOut.OTHER_TASKS
    if any(getattr(logged, name) != getattr(parameters, name) for name in NOT_LOGGED):
        return LeftOut.OTHER_MODELS
    rows = items.index_of(drawn.ranking)
    if not rows.all():
        return LeftOut.UNKNOWN_ITEMS
    k = len(drawn.places)
    depth = depth_of(parameters, k)
    values = value(tasks, drawn.task_scores, parameters.weights)
    by = value_model.diverse_by
    order = order_of(values, parameters.rerank_diversity, items, by, rows, depth)
    to = Policy(_target_exploration(parameters), len(order))
    if not supported(drawn.policy, to, order, k):
        return LeftOut.UNSUPPORTED
    return Request(
        request=hash_of(record.request_id),
        user=hash_of(record.user_id),
        time_ms=record.event_time_ms,
        keys=drawn.ranking[drawn.places],
        places=drawn.places,
        propensities=drawn.propensities,
        logging=drawn.policy,
        order=order,
        target=to,
    )


def _target_exploration(parameters: Parameters) -> Exploration:
    kind = parameters.rerank_exploration
    certain = kind == EPSILON and not parameters.rerank_epsilon
    return IN_ORDER if kind == NO_EXPLORATION or certain else policy_of(parameters)


class _Drawn(NamedTuple):
    policy: Policy
    places: np.ndarray  # int64[k]
    propensities: np.ndarray  # float64[k]
    ranking: np.ndarray  # uint64[m] item keys
    task_scores: np.ndarray  # float32[m, tasks]


def _drawn(record: records_pb2.DecisionRecord) -> _Drawn | None:
    """How the list was drawn and from what; None if the record contradicts itself: then its
    propensities may not be those of what was shown, and nothing can be built on them."""
    how = record.exploration
    try:
        places = np.frombuffer(how.places, "<u2").astype(np.int64)
        propensities = np.frombuffer(record.propensities, "<f4").astype(np.float64)
        keys = np.frombuffer(how.item_keys, "<u8")
        task_scores = np.frombuffer(how.task_scores, "<f4").reshape(how.ranked, len(record.tasks))
        policy = Policy(_exploration(how), how.ranked)
        if not len(places) == len(propensities) == len(record.item_ids) or len(keys) != how.ranked:
            return None
        if len(places) > MAX_ITEMS or len(set(record.tasks)) < len(record.tasks):
            return None
        shown = np.array([item_key(item_id) for item_id in record.item_ids], np.uint64)
        expected = policy.propensities(places)
        agree = np.abs(propensities - expected) <= PROPENSITY_TOLERANCE * expected
        if (keys[places] != shown).any() or not agree.all() or not propensities.min() > 0:
            return None
    except (ValueError, ExplorationError):
        return None
    if not (np.abs(task_scores) <= LARGEST_SCORE).all():
        return None
    return _Drawn(policy, places, propensities, keys, task_scores)


def _exploration(how: records_pb2.Exploration) -> Exploration:
    if how.kind not in STRENGTH_OF:
        raise ExplorationError(f"there is no exploration {how.kind!r}. Update this program.")
    specs = IN_EVERY_DOMAIN
    strength = specs[STRENGTH_OF[how.kind]]
    depth, ranked = specs["rerank.exploration_depth"], specs["retrieval.num_candidates"]
    # A float32 may lie a rounding beyond the range.
    if not (
        strength.low * (1 - 1e-6) <= how.strength <= strength.high * (1 + 1e-6)
        and how.depth <= depth.high
        and how.ranked <= ranked.high
    ):
        raise ExplorationError("no parameters explore like that. Find who wrote the record.")
    return policy_of(_as_explored(Parameters(), how))


def supported(logging: Policy, target: Policy, order: np.ndarray, count: int) -> bool:
    """Whether every list of `count` that the target can draw could have been drawn.

    order: the target's ranking, as places in the logged one. Both kinds of exploration can put any
    item of their pool (the best `depth`) at any of as many places and have the rest in order below.
    """
    pool = min(logging.exploration.depth, logging.length)
    reach = target.exploration.depth
    if pool == logging.length and pool < logging.exploration.depth:
        reach = min(reach, pool)  # there was no further candidate
    if reach > pool:
        return False
    # Below the pool what was shown was certain: the target must show the same there.
    below = np.arange(pool, count)
    return bool((order[pool:count] == below).all())
