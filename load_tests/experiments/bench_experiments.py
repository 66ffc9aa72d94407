"""What the experiment statistics promise, measured: error rates, power, savings, alarms, speed.

`python -m load_tests.experiments.bench_experiments` prints tables. Everything is
simulated with a fixed seed, so a second run prints the same figures, times aside. An error rate
stands beside the highest that 2,000 tests of a true 5 % (or 1 %) may show: two Monte-Carlo errors
above it.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load_tests.experiments.guardrails import guardrails
from load_tests.experiments.sample_ratio import sample_ratio
from models.figures import console, print_machine, print_table, save
from services.experiments.statistics.cuped import adjusted_estimates
from services.experiments.statistics.effects import difference, interval, relative
from services.experiments.statistics.estimates import (
    Estimate,
    Kind,
    estimate,
    mean_estimate,
    ratio_estimate,
)
from services.experiments.statistics.moments import Moments, moments_of
from services.experiments.statistics.power import (
    LOOKS,
    binary_variance,
    sequential_sample,
)
from services.experiments.statistics.sequential import (
    confidence_sequence,
    log_e_value,
    rho_for,
    stabilised,
)

Floats = NDArray[np.float64]

SEED = 20_26
ALPHA = 0.05
TESTS = 2_000
PEEKS, BATCH = 100, 200  # looks and units between them, both arms together


def main() -> None:
    print_machine()
    reduction()  # first: its peak memory is its own
    rows()
    start = time.perf_counter()
    aa()
    plans()
    guardrails(SEED)
    cuped()
    sample_ratio(SEED)
    console.print(f"simulations: {time.perf_counter() - start:.1f} s")
    save("bench_experiments", {})


# One million units.

UNITS, METRICS = 1_000_000, 20


def reduction() -> None:
    """20 metrics of a million units, each with a CUPED covariate, to a report of intervals."""
    rng = np.random.default_rng(SEED)
    arms = rng.integers(0, 2, UNITS)
    metrics = [_metric(rng, i) for i in range(METRICS)]
    before = time.process_time()
    moments = [(kind, _by_arm(arms, *columns)) for kind, *columns in metrics]
    reduced = time.process_time()
    for kind, (control, treatment) in moments:
        plain = estimate(treatment, kind), estimate(control, kind)
        adjusted = adjusted_estimates([treatment, control], kind)
        for t, c in (plain, adjusted):
            for effect in (difference, relative):
                interval(effect(t, c), ALPHA)
                confidence_sequence(effect(*stabilised(t, c)), rho_for(UNITS), ALPHA)
    done = time.process_time()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    data_mib = sum(c.nbytes for _, *columns in metrics for c in columns) / 2**20
    print_table(
        f"{UNITS:,} units x {METRICS} metrics (8 rates, 8 heavy-tailed means, 4 ratios), "
        "each with a covariate, 2 arms",
        ["", "CPU s or MiB"],
        [
            ("arrays to moments, exact", round(reduced - before, 3)),
            ("moments to intervals", round(done - reduced, 3)),
            ("peak memory of the process", round(peak_mib)),
            ("  of which the arrays themselves", round(data_mib)),
        ],
    )


def rows() -> None:
    """The same from the fold's rows on: measuring and the whole report, in a process of its own."""
    command = [sys.executable, "-m", "load_tests.experiments.rows"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    print_table(
        f"{figures['decisions']:,} decisions and {figures['events']:,} events of {UNITS:,} units, "
        f"{figures['metrics']} metrics with covariates, segments and two observation times, "
        f"{figures['cells']} cells of arm and day",
        ["", "s or MiB"],
        [
            ("events matched with their decisions (CPU)", figures["match_cpu_s"]),
            ("rows to statistics, exact (CPU)", figures["measure_cpu_s"]),
            ("statistics to the report (CPU)", figures["report_cpu_s"]),
            ("all of it (wall clock)", figures["wall_s"]),
            ("peak memory of the process", figures["peak_rss_mib"]),
            ("  before measuring, with the rows being made", figures["peak_rss_before_mib"]),
            ("  of which the rows themselves", figures["rows_mib"]),
        ],
    )


def _by_arm(arms: NDArray[np.int64], *columns: Floats) -> list[Moments]:
    """Control's (arm 0) and treatment's moments; `arms` (n,) says the arm of each unit."""
    return [moments_of(*(column[arms == arm] for column in columns)) for arm in (0, 1)]


def _metric(rng: np.random.Generator, i: int) -> tuple[Kind, *tuple[Floats, ...]]:
    covariate = rng.standard_normal(UNITS)
    if i < 8:
        return "mean", (rng.random(UNITS) < 0.1).astype(np.float64), covariate
    if i < 16:
        return "mean", np.exp(rng.normal(0, 1.5, UNITS)), covariate
    views = np.ceil(rng.exponential(8, UNITS))
    return "ratio", np.floor(views * rng.random(UNITS)), views, covariate


# A/A tests with peeking.


@dataclass(frozen=True)
class Simulated:
    """A metric to simulate: units' values (tests, batch), of a ratio with its denominators."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, int]], tuple[Floats, ...]]


def _binary(rate: float) -> Simulated:
    return Simulated(
        f"rate of {rate:.0%}",
        lambda rng, shape: ((rng.random(shape) < rate).astype(np.float64),),
    )


def _heavy(sigma: float) -> Simulated:
    skewness = (math.exp(sigma**2) + 2) * math.sqrt(math.exp(sigma**2) - 1)
    return Simulated(
        f"mean, skewness {skewness:.0f}",
        lambda rng, shape: (np.exp(sigma * rng.standard_normal(shape)),),
    )


def _ratio(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, ...]:
    """Clicks per view; users differ in views and in how readily they click."""
    views = np.ceil(8 * rng.standard_exponential(shape))
    return rng.poisson(views * 0.1 * rng.standard_exponential(shape)).astype(np.float64), views


SCENARIOS = (
    (_binary(0.05), 0.5),
    (_heavy(1.5), 0.5),
    (Simulated("ratio, clicks per view", _ratio), 0.5),
    (_binary(0.02), 0.1),
    (_heavy(1.5), 0.1),
)


def aa() -> None:
    """Share of A/A tests that ever find an effect, looking after every batch."""
    rows = []
    for i, (metric, share) in enumerate(SCENARIOS):
        treatment, control = _arms_by_look(np.random.default_rng([SEED, i]), metric, share)
        plain = difference(treatment, control)
        safe = stabilised(treatment, control)
        rho = rho_for(PEEKS * BATCH, ALPHA)
        called = _called(plain)
        found = (
            _ever(difference(*safe), rho),
            _ever(relative(*safe), rho),
            _ever(plain, rho),
            called.any(axis=1),
            called[:, 4::5].any(axis=1),
            called[:, -1],
        )
        name = f"{metric.name}, {100 * share:.0f}:{100 * (1 - share):.0f}"
        rows.append((name, *(f"{hit.mean():.1%}" for hit in found)))
    print_table(
        f"A/A tests that find an effect: {TESTS:,} of {PEEKS * BATCH:,} units, {PEEKS} looks, "
        f"alpha {ALPHA:.0%} (at most {_ceiling(ALPHA):.1%} by chance)",
        [
            "metric, split",
            "sequence",
            "its lift",
            "not stabilised",
            "fixed, 100 looks",
            "20 looks",
            "at the end",
        ],
        rows,
    )


def _arms_by_look(
    rng: np.random.Generator, metric: Simulated, share: float
) -> tuple[Estimate, Estimate]:
    """Treatment's and control's estimates (tests, looks) of A/A streams."""
    by_look = []
    for _ in range(PEEKS):
        columns = metric.draw(rng, (TESTS, BATCH))
        treated = (rng.random((TESTS, BATCH), dtype=np.float32) < share).astype(np.float64)
        terms = [*columns, *(a * b for i, a in enumerate(columns) for b in columns[i:])]
        in_all = np.stack([np.full(TESTS, float(BATCH)), *(term.sum(axis=1) for term in terms)])
        in_treatment = np.stack(
            [treated.sum(axis=1), *(np.einsum("tu,tu->t", term, treated) for term in terms)]
        )
        by_look.append((in_treatment, in_all - in_treatment))
    sums = np.cumsum(np.array(by_look), axis=0)  # (looks, arms, terms, tests)
    treatment, control = (_from_sums(sums[:, arm].transpose(1, 2, 0)) for arm in (0, 1))
    return treatment, control


def _from_sums(sums: Floats) -> Estimate:
    """`sums`: units, then values and products, of a mean (3, ...) or a ratio (6, ...)."""
    n, *rest = sums

    def covariance(products: Floats, a: Floats, b: Floats) -> Floats:
        return (products - a * b / n) / (n - 1)

    if len(rest) == 2:
        x, xx = rest
        return mean_estimate(n, x / n, covariance(xx, x, x))
    x, y, xx, xy, yy = rest
    return ratio_estimate(
        n, x / n, y / n, covariance(xx, x, x), covariance(yy, y, y), covariance(xy, x, y)
    )


def _called(effect: Estimate) -> NDArray[np.bool_]:
    """Whether a fixed-horizon test would call it an effect at each look (tests, looks)."""
    found = interval(effect, ALPHA)
    return np.asarray((np.asarray(found.low) > 0) | (np.asarray(found.high) < 0))


def _ever(effect: Estimate, rho: float) -> NDArray[np.bool_]:
    """Whether the evidence reaches 1/alpha at any look (tests,)."""
    return np.asarray(log_e_value(effect, rho)).max(axis=1) >= -math.log(ALPHA)


def _ceiling(rate: float) -> float:
    return rate + 2 * math.sqrt(rate * (1 - rate) / TESTS)


# Plans.

PLANS = (  # metric, lift, treatment's share
    (_binary(0.05), 0.15, 0.5),
    (_binary(0.05), 0.15, 0.1),
    (_binary(0.20), -0.10, 0.5),
    (_heavy(1.0), 0.20, 0.5),
    (_heavy(1.0), 0.20, 0.1),
)


def plans() -> None:
    """What is found of an effect with the sample that was planned to find it with 80 %."""
    rng = np.random.default_rng(SEED)
    rows = []
    for metric, lift, share in PLANS:
        (sample,) = metric.draw(rng, (1, 1_000_000))
        mean, variance = float(sample.mean()), float(sample.var())
        treated = mean * (1 + lift) if metric.name.startswith("rate") else None
        plan = sequential_sample(
            mean * lift,
            binary_variance(treated) if treated else variance * (1 + lift) ** 2,
            variance,
            share=share,
        )
        steps = np.diff(np.round(np.linspace(0, plan.units, LOOKS + 1))).astype(np.int64)
        by_look = []
        for step in steps.tolist():
            (control,) = metric.draw(rng, (TESTS, step))
            values = (
                (rng.random((TESTS, step)) < treated).astype(np.float64)
                if treated
                else control * (1 + lift)
            )
            chosen = rng.random((TESTS, step)) < share
            by_look.append(
                [
                    [of.sum(axis=1), (v * of).sum(axis=1), (v * v * of).sum(axis=1)]
                    for v, of in ((values, chosen), (control, ~chosen))
                ]
            )
        sums = np.cumsum(np.array(by_look, dtype=np.float64), axis=0)
        arms = [_from_sums(sums[:, arm].transpose(1, 2, 0)) for arm in (0, 1)]
        found = _ever(difference(*stabilised(*arms)), plan.rho)
        name = f"{metric.name}, {lift:+.0%}, {100 * share:.0f}:{100 * (1 - share):.0f}"
        rows.append((name, f"{plan.units:,.0f}", f"{found.mean():.1%}"))
    print_table(
        f"Plans that ask for a power of 80 %: {TESTS:,} tests, {LOOKS} looks",
        ["metric, effect, split", "units", "found"],
        rows,
    )


# CUPED.

EXPERIMENTS, UNITS_EACH = 4_000, 1_000


def cuped() -> None:
    """Variance of the effect with CUPED over that without, across repeated experiments."""
    rng = np.random.default_rng(SEED)
    rows = []
    for rho in (0.3, 0.5, 0.7, 0.9):
        plain, adjusted = [], []
        for _ in range(EXPERIMENTS):
            x = rng.standard_normal(UNITS_EACH)
            y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(UNITS_EACH)
            arms = _by_arm(rng.integers(0, 2, UNITS_EACH), y, x)
            plain.append(_effect(estimate(arm) for arm in arms))
            adjusted.append(_effect(adjusted_estimates(arms)))
        spread = [np.var([float(e.value) for e in each]) for each in (adjusted, plain)]
        claimed = [np.mean([float(e.variance) for e in each]) for each in (adjusted, plain)]
        # Of a ratio of variances whose effects correlate by sqrt(1 - rho²).
        error = 2 * rho * (1 - rho**2) / math.sqrt(EXPERIMENTS)
        figures = (1 - rho**2, claimed[0] / claimed[1], spread[0] / spread[1], error)
        rows.append((rho, *(f"{figure:.3f}" for figure in figures)))
    print_table(
        f"CUPED: variance of the effect over that without; {EXPERIMENTS:,} experiments of "
        f"{UNITS_EACH:,} units",
        ["correlation", "1 - rho²", "claimed", "measured", "± standard error"],
        rows,
    )


def _effect(arms: Iterable[Estimate]) -> Estimate:
    control, treatment = arms
    return difference(treatment, control)


if __name__ == "__main__":
    main()
