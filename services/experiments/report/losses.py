"""Treatments that plainly lose units on the way, whatever guardrails are declared: found early.

Guardrails say which harm is allowed. This says what nobody would allow and everybody forgets to
declare: an arm whose users get no answers, or degraded ones only, or of whom no feedback comes
back. Each hop compares the share of units that pass it with control's: it is broken if the arm's is
shown to be less than the hop's `part` of that. Smaller differences are warnings (`sample_ratio`),
and matters of guardrails. Whoever declares a guardrail on degraded answers has said how many of
them are borne: then units that got some are not looked at here.

The evidence is that of a guardrail, an e-value that may be looked at any time, and a unit's answers
count in its first minute. LEVEL over all hops: the chance that the sound hops of a sound arm ever
stop it, however often one looks, is at most 1 %, beside that of its guardrails and of the sample
ratio. A loss in control is nothing that stopping a treatment would mend: it is a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from services.experiments.declare.metrics import Plan, serving_observe_s
from services.experiments.measure.results import Cell
from services.experiments.report.comparisons import GUARDRAIL_RHO, Comparisons
from services.experiments.report.findings import BrokenHop
from services.experiments.statistics import sequential
from services.experiments.statistics.estimates import Estimate, Real, cautious, mean_estimate
from services.experiments.statistics.harm import Allowed, excess
from services.experiments.statistics.strata import stratified

LEVEL = 0.01


class Hop(NamedTuple):
    name: str
    entered: Callable[[Cell], int]
    passed: Callable[[Cell], int]
    part: float  # of control's share that an arm must pass on
    of_serving: bool  # known after a minute
    said: str


# A unit counts as degraded after one degraded answer of many, and users may react less: hence half.
HOPS = (
    Hop("served", lambda c: c.final, lambda c: c.served, 0.9, True, "got any answer"),
    Hop("undegraded", lambda c: c.final, lambda c: c.undegraded, 0.5, True, "got whole answers"),
    Hop("joined", lambda c: c.served, lambda c: c.joined, 0.5, False, "sent any feedback"),
)


def broken_hops(comparisons: Comparisons, plan: Plan, control: str) -> list[BrokenHop]:
    """Of every treatment."""
    found = []
    for arm in comparisons.treatments:
        for hop in HOPS:
            if hop.name == "undegraded" and any(g.metric.of == "degraded" for g in plan.guardrails):
                continue
            cells = comparisons.cells(arm, serving_observe_s(plan) if hop.of_serving else None)
            pairs = [
                (passing(hop.entered(t), hop.passed(t)), passing(hop.entered(c), hop.passed(c)))
                for t, c in cells
            ]
            log_e = float(log_evidence(pairs, hop.part, comparisons.share(arm)))
            if log_e < math.log(len(HOPS) / LEVEL):
                continue
            entered, passed = (
                (sum(count(t) for t, _ in cells), sum(count(c) for _, c in cells))
                for count in (hop.entered, hop.passed)
            )
            shares = [100 * p / n for p, n in zip(passed, entered, strict=True)]
            sentence = (
                f"Units of {arm} are lost on the way ({hop.name}): {shares[0]:.3g} % of "
                f"{entered[0]:,} {hop.said}, of {control}'s {entered[1]:,} it is {shares[1]:.3g} %."
            )
            found.append(
                BrokenHop(
                    arm=arm,
                    hop=hop.name,
                    entered=entered,
                    passed=passed,
                    least=hop.part,
                    log_e=log_e,
                    sentence=sentence,
                )
            )
    return found


def passing(entered: Real, passed: Real) -> Estimate:
    """The share of units that pass a hop; unknown below two."""
    n = np.asarray(entered, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = passed / n
        found = mean_estimate(n, share, share * (1 - share) * n / (n - 1))
    return cautious(found, 1.0)


def log_evidence(
    pairs: Sequence[tuple[Estimate, Estimate]], part: float, share: float = 0.5
) -> Real:
    """That treatment's share is less than `part` of control's: (treatment, control) in every split,
    `share` as in `stratified`."""
    steady = [sequential.stabilised(*pair) for pair in pairs]
    both = steady[0] if len(steady) == 1 else stratified(steady, share)
    beyond = excess(*both, Allowed(1 - part, absolute=False, lower_is_better=False))
    return sequential.log_e_value_above(beyond, GUARDRAIL_RHO)
