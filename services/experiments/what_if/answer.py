"""What would other parameters have earned on the requests that were logged? From a collected log
(`log`) to an estimate with its interval, or a refusal that says what to do.

THE VALUE is per request: of a `mean` metric the number of its events on the list, or the sum of
their values; of a `binary` one the share of lists with any, or with `at_least` so much (a report's
is of units, over all their requests); of a `ratio` what all lists have divided by what they have of
the other kind, or by the requests. Events
count as in a report: from SKEW_MS before the request to the metric's window after it, each once.
A request whose window is not over does not count.

THE ESTIMATOR. `auto` takes the weakest assumption that the log can carry: RIPS, and where that has
too few effective samples (and the metric is a sum over places) item-position. The choice looks at
weights and never at rewards, so the interval stays right. Of `binary` the reward of a place is 1
if with it the list has enough: that depends on the places above and not on those below, which is
what RIPS assumes. `off_policy.estimators` has both.

THE ERROR. Requests of one user are not independent: users are the units. The logged policy's own
value is that of the same requests, so the difference is of pairs, and its interval is made of the
differences of influence values (`off_policy.policy_value`).

WHAT IS NOT GUARANTEED. The target ranks the items of the logged ranking only (`log`).
Nobody's behaviour changes by what was shown before: a user who sees better lists may come back more
often, and the log does not know. Intervals are for one look at a fixed horizon. The answer is a
reason to start an A/B test or not to; it does not replace one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np

from services.event_log.whole_log import SKEW_MS
from services.experiments.declare.metrics import Metric
from services.experiments.what_if.log import ItemEvent, LeftOut, Request, WhatIfLog
from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    NotInLog,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.policy_value import (
    Comparison,
    PolicyValue,
    difference,
    lift,
    on_policy,
    ratio,
)
from services.experiments.what_if.off_policy.weights import DEFAULT, Requirements
from services.experiments.what_if.slates import EstimatorName, Slates

Choice: TypeAlias = Literal["auto"] | EstimatorName

# In the order in which `auto` takes them.
ASSUMES: Mapping[EstimatorName, str] = {
    "rips": "that what a place earns does not depend on the places below it",
    "item_position": "that what a place earns depends on the place and its item only",
}

# Share of the requests on which the target can show what could not be shown: up to it they are
# left out and said, beyond it the answer would be about other requests than was asked.
MOST_UNSUPPORTED = 0.05
MOST_CONTRADICTORY = 0.005  # share of the explored requests: likewise

_TO_DO: Mapping[LeftOut, str] = {
    LeftOut.UNANSWERED: "Find out what fails",
    LeftOut.ELSEWHERE: "Ask without the experiment's name, by --set",
    LeftOut.INTERLEAVED: "Take a time without the interleaving experiment",
    LeftOut.DEGRADED: "Find out what fails, or take a longer --last",
    LeftOut.UNRANKED: "Take a time in which a ranking model answered",
    LeftOut.UNEXPLORED: (
        "Set rerank.exploration to plackett_luce or epsilon for a share of the requests, in an "
        "experiment of a layer of its own, and ask again when they are logged"
    ),
    LeftOut.NO_RANKING: "Update the routers and ask again when they have logged",
    LeftOut.OLD_PARAMETERS: "Take a shorter --last",
    LeftOut.OTHER_TASKS: (
        "Take a --last since models predict all tasks that the formula of schema.yaml reads"
    ),
    LeftOut.OTHER_MODELS: (
        "Run an A/B test or an interleaving experiment: the scores of other models were not logged"
    ),
    LeftOut.UNKNOWN_ITEMS: "Take a --last that is within the catalogue in force",
    LeftOut.UNSUPPORTED: (
        "Give the target a rerank.exploration_depth up to the logged one, or log with a larger "
        "one (at least as many as are shown): items beyond it were never shown"
    ),
    LeftOut.OPEN: "Take a --last that is longer than the metric's window, or ask later",
}


class FeedbackCounts(NamedTuple):
    """Events of used requests: how many count, and how many do not."""

    counted: int
    outside_window: int
    other_items: int  # on items that their lists do not have


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The answer. `passed_over`: why `auto` did not take an estimator with a weaker assumption."""

    metric: Metric
    estimator: EstimatorName
    passed_over: str
    logged: PolicyValue
    target: PolicyValue
    difference: Comparison
    lift: Comparison | None  # None: the logged policy earned nothing
    requests: int
    users: int
    feedback: FeedbackCounts
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)
    undecodable: int = 0  # records of the log that are none

    @property
    def assumes(self) -> str:
        return ASSUMES[self.estimator]

    def to_json(self) -> dict[str, Any]:
        """For programs; numbers that are not finite are null."""
        return {
            "metric": self.metric.name,
            "value": value_text(self.metric),
            "estimator": self.estimator,
            "assumes": self.assumes,
            "passed_over": self.passed_over,
            "requests": self.requests,
            "users": self.users,
            "left_out": {why.name.lower(): n for why, n in self.left_out.items()},
            "undecodable": self.undecodable,
            "feedback": self.feedback._asdict(),
            "logged": _numbers(self.logged),
            "target": _numbers(self.target),
            "difference": _numbers(self.difference),
            "lift": None if self.lift is None else _numbers(self.lift),
        }


def _numbers(of: PolicyValue | Comparison) -> dict[str, float | None]:
    made = {name: getattr(of, name) for name in of.__slots__ if name != "influence"}
    return {k: v if math.isfinite(v) else None for k, v in made.items()}


def what_if(
    log: WhatIfLog,
    metric: Metric,
    choice: Choice = "auto",
    requirements: Requirements = DEFAULT,
) -> WhatIf:
    """The target's value beside the logged policy's. Raises OffPolicyRefused."""
    check_metric(metric, choice)
    window_ms = round(metric.window_s * 1000)
    usable = log.requests()
    _check_records(log, len(usable))
    requests = [r for r in usable if r.time_ms + window_ms <= log.until_ms]
    left_out = log.left_out()
    left_out[LeftOut.OPEN] = len(usable) - len(requests)
    left_out = +left_out
    _check_enough(requests, left_out)

    slates = Slates(requests)
    sources = metric.events.sources.values()
    earned, feedback = earned_by_place(requests, log.events(), sources, window_ms, slates.places)
    choices = [choice] if choice != "auto" else [n for n in ASSUMES if fits(metric, n)]
    passed_over = ""
    for name in choices:
        try:
            by_name = partial(slates.estimate, name, requirements)
            target = _of_metric(metric, earned, by_name, slates.units)
            break
        except (TooFewEffectiveSamples, MissingSupport) as refusal:
            if name == choices[-1]:
                raise
            passed_over = f"{name}: {refusal}"
    logged = _of_metric(
        metric, earned, lambda r: on_policy(r.sum(axis=1), slates.units), slates.units
    )
    return WhatIf(
        metric=metric,
        estimator=name,
        passed_over=passed_over,
        logged=logged,
        target=target,
        difference=difference(target, logged, slates.units),
        lift=lift(target, logged, slates.units) if logged.value else None,
        requests=len(requests),
        users=len(np.unique(slates.units)),
        feedback=feedback,
        left_out=dict(sorted(left_out.items(), key=lambda item: list(LeftOut).index(item[0]))),
        undecodable=log.undecodable,
    )


def choice_of(text: str) -> Choice:
    """The estimator of this name, or `auto`. Raises NotInLog."""
    if text == "auto" or text in ASSUMES:
        return cast(Choice, text)
    raise NotInLog(f"There is no estimator {text!r}. Use auto or one of {', '.join(ASSUMES)}.")


def fits(metric: Metric, name: EstimatorName) -> bool:
    """Whether the estimator's assumption can hold of the metric at all."""
    return metric.kind != "binary" or name != "item_position"


def check_metric(metric: Metric, choice: Choice = "auto") -> None:
    """Refuse a metric that re-ranking does not move or that is not a mean over requests, and an
    estimator that is not for it. Raises NotInLog."""
    if not metric.source:
        raise NotInLog(
            f"{metric.name} is of {metric.of}, which the order of a list does not change. Ask for "
            "a metric of an event."
        )
    if metric.kind == "quantile" or metric.winsorise is not None:
        raise NotInLog(
            f"{metric.name} is a quantile, or capped at one, of what users have of all their lists,"
            " and not a mean over lists. Ask for a mean that is not winsorised, a ratio or a binary"
            " metric."
        )
    if metric.where:
        raise NotInLog(
            f"{metric.name} is of events with a property, which is not looked at here. Ask for a"
            " metric of all of them."
        )
    if choice != "auto" and not fits(metric, choice):
        raise NotInLog(
            f"{metric.name} is binary: whether a list earns anything is no sum over its places, "
            f"which {choice} assumes. Use rips."
        )


def earned_by_place(
    requests: Sequence[Request],
    events: Sequence[ItemEvent],
    sources: Collection[int],
    window_ms: int,
    places: int,
) -> tuple[dict[int, np.ndarray], FeedbackCounts]:
    """float64[n, places] by source: how many of an event each place got, or what they add up to."""
    earned = {source: np.zeros((len(requests), places)) for source in sources}
    row_of = {request.request: row for row, request in enumerate(requests)}
    counted = outside = other = 0
    for event in events:
        row = row_of.get(event.request)
        if row is None or event.type not in earned:
            continue
        at = np.flatnonzero(requests[row].keys == event.key)
        if not -SKEW_MS <= event.time_ms - requests[row].time_ms <= window_ms:
            outside += 1
        elif not len(at):
            other += 1
        else:
            earned[event.type][row, at[0]] += 1
            if -event.type in earned:
                earned[-event.type][row, at[0]] += event.value
            counted += 1
    return earned, FeedbackCounts(counted, outside, other)


def value_text(metric: Metric) -> str:
    """What the value is, for people."""
    of = metric.of if metric.amount else f"{metric.of}s"
    match metric.kind:
        case "binary" if metric.at_least is not None:
            return f"share of requests with at least {metric.at_least:g} {of}"
        case "binary" if metric.amount:
            return f"share of requests with any {of}"
        case "binary":
            return f"share of requests with at least one {metric.of}"
        case "ratio":
            return f"{of} per {metric.per}"
        case _:
            return f"{of} per request"


def _of_metric(
    metric: Metric,
    earned: Mapping[int, np.ndarray],
    estimate: Callable[[np.ndarray], PolicyValue],
    units: np.ndarray,
) -> PolicyValue:
    """The metric's estimate, from a function that estimates the mean of rewards [n, k]."""
    of = earned[metric.source]
    if metric.kind == "binary":
        so_far = of.cumsum(axis=1)
        enough = so_far > 0 if metric.at_least is None else so_far >= metric.at_least
        return estimate(np.diff(enough.astype(float), axis=1, prepend=0.0))
    if metric.kind == "ratio" and metric.per_source:
        return ratio(estimate(of), estimate(earned[metric.per_source]), units)
    return estimate(of)


def _check_records(log: WhatIfLog, usable: int) -> None:
    """Single ones are left out and counted; more are a router that writes what it did not do."""
    names = log.contradictory()
    if len(names) > MOST_CONTRADICTORY * (usable + len(names)):
        raise InvalidLog(
            f"The records of {len(names)} requests contradict themselves ({names[0]} is one): the "
            "items, places or propensities are not those that their exploration makes of their "
            "ranking. Find the router that wrote them, and take a --last without its requests."
        )


def _check_enough(requests: Sequence[Request], left_out: Mapping[LeftOut, int]) -> None:
    unsupported = left_out.get(LeftOut.UNSUPPORTED, 0)
    if unsupported > MOST_UNSUPPORTED * (unsupported + len(requests)):
        raise MissingSupport(
            f"On {unsupported:,} of {unsupported + len(requests):,} requests "
            f"{LeftOut.UNSUPPORTED.value}. {_TO_DO[LeftOut.UNSUPPORTED]}."
        )
    if not requests:
        total = sum(left_out.values())
        if not total:
            raise NotInLog("The log has no request of this time. Take a longer --last.")
        why = max(left_out, key=lambda reason: left_out[reason])
        raise NotInLog(
            f"None of {total:,} requests can be used; of {left_out[why]:,} the reason is: "
            f"{why.value}. {_TO_DO[why]}."
        )
