"""What acting promises, measured: false stops, harm found, health shown (see `bench_experiments`).

Units fail or not, all their requests together: the hardest case, since requests that fail one by
one spread less. Everything is looked at many times, and a verdict counts if it is ever given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.figures import print_table
from services.experiments.report.comparisons import ALPHA, GUARDRAIL_RHO
from services.experiments.report.losses import HOPS, LEVEL, log_evidence, passing
from services.experiments.statistics.harm import Allowed, excess
from services.experiments.statistics.sequential import (
    confidence_sequence,
    log_e_value_above,
    stabilised,
)

Floats = NDArray[np.float64]

RUNS = 2_000
LONG = np.unique(np.geomspace(200, 1_000_000, 200).round())  # units at each look
SHORT = np.arange(20.0, 20_001, 20)


@dataclass(frozen=True)
class Case:
    """Failing shares of units, and the harm that is allowed."""

    treatment: float
    control: float
    allowed: float
    absolute: bool
    treated: float = 0.5  # treatment's share of the units

    @property
    def name(self) -> str:
        margin = f"{self.allowed:g}" if self.absolute else f"{self.allowed:.0%}"
        split = f"{100 * (1 - self.treated):.0f}:{100 * self.treated:.0f}"
        return f"{self.control:g} -> {self.treatment:g}, allowed {margin}, {split}"


def guardrails(seed: int) -> None:
    """Tables of all of it."""
    rng = np.random.default_rng(seed)
    _at_the_margin(rng)
    _beyond_the_margin(rng)
    _faultless(rng)
    _hops(rng)


def _at_the_margin(rng: np.random.Generator) -> None:
    """No harm with none allowed, and harm of just what is allowed."""
    cases = [
        *(Case(p, p, 0.0, True, treated) for p in (1e-4, 1e-3, 1e-2) for treated in (0.5, 0.1)),
        Case(0.0011, 0.001, 0.1, False),
        Case(0.011, 0.01, 0.1, False),
        Case(0.011, 0.01, 0.1, False, 0.1),
        Case(0.06, 0.05, 0.01, True),
        Case(0.06, 0.05, 0.01, True, 0.1),
        Case(0.01, 0.0, 0.01, True),
        Case(0.001, 0.0, 0.001, True, 0.1),
    ]
    rows = []
    for case in cases:
        verdicts = _verdicts(rng, case, LONG)
        rows.append((case.name, *(f"{given.any(axis=1).mean():.2%}" for given in verdicts)))
    print_table(
        f"Harm of just what is allowed, so that each verdict is false: {RUNS:,} runs, {len(LONG)} "
        f"looks up to {LONG[-1]:,.0f} units, alpha {ALPHA:.0%}",
        ["failing units", "stopped", "said to hold"],
        rows,
    )


def _beyond_the_margin(rng: np.random.Generator) -> None:
    cases = [
        Case(p, c, allowed, absolute, treated)
        for treated in (0.5, 0.1)
        for c, p, allowed, absolute in (
            (0.0, 1.0, 0.01, True),
            (0.0, 1.0, 0.1, False),
            (0.0, 0.3, 0.01, True),
            (0.0, 0.3, 0.1, False),
            (0.0005, 0.3, 0.1, False),
            (0.05, 0.3, 0.01, True),
            (0.0005, 0.01, 0.001, True),
            (0.0005, 0.05, 0.001, True),
        )
    ]
    rows = [(case.name, *_first(_verdicts(rng, case, SHORT)[0], SHORT)) for case in cases]
    print_table(
        f"Harm beyond what is allowed: {RUNS:,} runs, a look every {SHORT[0]:,.0f} units up to "
        f"{SHORT[-1]:,.0f}",
        ["failing units", "stopped", "median units of both arms", "95th percentile"],
        rows,
    )


def _faultless(rng: np.random.Generator) -> None:
    cases = [
        Case(0.0, 0.0, allowed, True, treated)
        for allowed in (0.01, 0.001)
        for treated in (0.5, 0.1)
    ]
    rows = [(case.name, *_first(_verdicts(rng, case, LONG)[1], LONG)) for case in cases]
    print_table(
        f"Nothing ever fails: shown to hold. {RUNS:,} runs",
        ["failing units", "holds", "median units of both arms", "95th percentile"],
        rows,
    )


def _hops(rng: np.random.Generator) -> None:
    """Shares of units that pass a hop, without any guardrail."""
    cases = [
        ("sound: 99 % in both", 0.99, 0.99, 0.9, 0.5),
        ("sound: 50 % in both", 0.5, 0.5, 0.5, 0.5),
        ("sound: 50 % in both", 0.5, 0.5, 0.5, 0.1),
        ("as few as is borne: 100 % -> 90 %", 0.9, 1.0, 0.9, 0.5),
        ("as few as is borne: 60 % -> 30 %", 0.3, 0.6, 0.5, 0.1),
        ("100 % -> 0 %", 0.0, 1.0, 0.9, 0.5),
        ("100 % -> 0 %", 0.0, 1.0, 0.9, 0.1),
        ("99 % -> 70 %", 0.7, 0.99, 0.9, 0.5),
        ("60 % -> 0 %", 0.0, 0.6, 0.5, 0.5),
    ]
    rows = []
    for said, treatment, control, part, treated in cases:
        name = f"{said}, {100 * (1 - treated):.0f}:{100 * treated:.0f}"
        (nt, t), (nc, c) = _counts(rng, treatment, control, treated, SHORT)
        log_e = np.asarray(log_evidence([(passing(nt, t), passing(nc, c))], part))
        rows.append((name, *_first(log_e >= math.log(len(HOPS) / LEVEL), SHORT)))
    print_table(
        f"Hops: units that pass, treatment stopped for it; level {LEVEL:.0%} over {len(HOPS)} hops",
        ["control -> treatment", "stopped", "median units of both arms", "95th percentile"],
        rows,
    )


def _verdicts(
    rng: np.random.Generator, case: Case, looks: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the guardrail is breached, and whether it holds, at each look (runs, looks)."""
    arms = _counts(rng, case.treatment, case.control, case.treated, looks)
    steady = stabilised(*(passing(n, failed) for n, failed in arms))
    beyond = excess(*steady, Allowed(case.allowed, case.absolute, lower_is_better=True))
    breached = np.asarray(log_e_value_above(beyond, GUARDRAIL_RHO)) >= -math.log(ALPHA)
    high = np.asarray(confidence_sequence(beyond, GUARDRAIL_RHO, ALPHA).high)
    return breached, (high < 0) & ~breached


def _counts(
    rng: np.random.Generator, treatment: float, control: float, treated: float, looks: Floats
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Units and those among them by which something happened, of treatment and of control, by each
    look (runs, looks); two units at the first look at least."""
    steps = np.diff(looks, prepend=0).astype(np.int64)
    entered = rng.binomial(steps, treated, (RUNS, len(steps)))
    entered[:, 0] = np.clip(entered[:, 0], 2, steps[0] - 2)
    arms = []
    for n, rate in ((entered, treatment), (steps - entered, control)):
        happened = np.cumsum(rng.binomial(n, rate), axis=1).astype(np.float64)
        arms.append((np.cumsum(n, axis=1).astype(np.float64), happened))
    return arms[0], arms[1]


def _first(given: NDArray[np.bool_], looks: Floats) -> tuple[str, str, str]:
    """Share of runs with the verdict, and when it is first given: median and 95th percentile."""
    ever = given.any(axis=1)
    at = looks[given.argmax(axis=1)][ever]
    if not len(at):
        return f"{0:.2%}", "", ""
    return f"{ever.mean():.2%}", f"{np.median(at):,.0f}", f"{np.quantile(at, 0.95):,.0f}"
