"""`what_if` on simulated records against the known truth, and against A/B tests of the same arm.

The whole path: the router's rerank and decision record, the collected log, the estimate. Each run
logs anew and runs the target as an arm on users of its own; all candidates are in the ranking, so
that what the arm shows is what the target would have ranked.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from load_tests.demo.wilson import wilson_interval
from load_tests.experiments.explored_world import FILMS, LOGGING, START_MS, VALUE_MODEL, World
from models.figures import console, print_table
from services.experiments.declare.metrics import Metric
from services.experiments.declare.parameters import Value
from services.experiments.what_if.answer import Choice, WhatIf, what_if
from services.experiments.what_if.log import Target, WhatIfLog
from services.experiments.what_if.off_policy.errors import OffPolicyRefused
from services.experiments.what_if.off_policy.weights import Requirements

USERS, PER_USER = 500, 2
UNTIL_MS = START_MS + 86_400_000
CLICKS = Metric("clicks", "mean", "click", "higher")
# Few effective samples are no reason to hide what the intervals are then worth.
REQUIREMENTS = Requirements(min_effective_sample_size=50)

TARGETS: dict[str, tuple[dict[str, Value], tuple[Choice, ...]]] = {
    "like_weight 5, explored as logged": (
        {"rerank.like_weight": 5.0},
        ("auto", "item_position"),
    ),
    "like_weight 5, best first": (
        {"rerank.like_weight": 5.0, "rerank.exploration": "none"},
        ("auto",),
    ),
}


class Run(NamedTuple):
    answer: WhatIf
    arm: float  # what the A/B test's arm earned, per request
    arm_error: float


def what_if_runs(runs: int, seed: int) -> None:
    """Coverage of the intervals of value and difference, and agreement with the A/B test."""
    world = World.of(seed + 3)
    logged_value = world.value(LOGGING)
    for title, (overrides, choices) in TARGETS.items():
        truth = world.value(FILMS.parameters.with_overrides(LOGGING, overrides))
        found: defaultdict[Choice, list[Run]] = defaultdict(list)
        taken: set[str] = set()
        refused: defaultdict[Choice, int] = defaultdict(int)
        for run in range(runs):
            log = _log(world, overrides, np.random.default_rng((seed, run)))
            arm, arm_error = _arm(world, overrides, np.random.default_rng((seed, run, 1)))
            for choice in choices:
                try:
                    answer = what_if(log, CLICKS, choice, REQUIREMENTS)
                except OffPolicyRefused:
                    refused[choice] += 1
                    continue
                if choice == "auto":
                    taken.add(answer.estimator)
                found[choice].append(Run(answer, arm, arm_error))
        rows = []
        for choice in choices:
            name = f"auto: {', '.join(sorted(taken))}" if choice == "auto" else choice
            rows.append((name, *_row(found[choice], truth, logged_value, refused[choice])))
        print_table(
            f"what-if {title}: {runs} runs, {USERS} users, {USERS * PER_USER:,} requests; true "
            f"value {truth:.4f} clicks per request, as logged {logged_value:.4f}",
            (
                "estimator",
                "bias",
                "spread",
                "error",
                "covers",
                "difference",
                "ESS",
                "A/B",
                "refused",
            ),
            rows,
        )
    console.print(
        "covers, difference: of the value's and of the difference's intervals, those that hold the "
        "truth; spread: standard deviation over runs; error: mean standard error; A/B: runs in "
        "which an A/B test of the arm agrees"
    )


def _log(world: World, overrides: dict[str, Value], generator: np.random.Generator) -> WhatIfLog:
    target = Target(overrides, FILMS.parameters)
    log = WhatIfLog(target, world.items, VALUE_MODEL, START_MS, UNTIL_MS)
    for record, events in world.traffic(LOGGING, USERS, PER_USER, generator):
        log.on_decision(record)
        for event in events:
            log.on_feedback(event)
    return log


def _arm(
    world: World, overrides: dict[str, Value], generator: np.random.Generator
) -> tuple[float, float]:
    """Clicks per request of an arm of as many users, and the standard error by users."""
    parameters = FILMS.parameters.with_overrides(LOGGING, overrides)
    traffic = world.traffic(parameters, USERS, PER_USER, generator, name="arm")
    clicks = np.array([len(events) for _, events in traffic]).reshape(USERS, PER_USER).mean(axis=1)
    return float(clicks.mean()), float(clicks.std(ddof=1)) / math.sqrt(USERS)


def _row(found: list[Run], truth: float, logged: float, refused: int) -> tuple[str, ...]:
    if not found:
        return ("", "", "", "", "", "", "", str(refused))
    targets = [run.answer.target for run in found]
    differences = [run.answer.difference for run in found]
    values = np.array([t.value for t in targets])
    agree = [
        abs(t.value - run.arm) <= 1.96 * math.hypot(t.standard_error, run.arm_error)
        for t, run in zip(targets, found, strict=True)
    ]
    return (
        f"{values.mean() - truth:+.4f}",
        f"{values.std(ddof=1):.4f}",
        f"{statistics.fmean(t.standard_error for t in targets):.4f}",
        _share([t.low <= truth <= t.high for t in targets]),
        _share([d.low <= truth - logged <= d.high for d in differences]),
        f"{statistics.fmean(t.effective_sample_size for t in targets):,.0f}",
        f"{statistics.fmean(agree):.1%}",
        str(refused) if refused else "",
    )


def _share(covered: list[bool]) -> str:
    low, high = wilson_interval(sum(covered), len(covered))
    return f"{statistics.fmean(covered):.1%} ({low * 100:.0f}..{high * 100:.0f})"
