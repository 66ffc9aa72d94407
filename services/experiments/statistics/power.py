"""How many units an experiment needs.

The variance of a unit's contribution is p(1 - p) for a rate (`binary_variance`), and for a mean or
ratio that of the past: `estimate.variance * estimate.n` of `estimates.estimate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from services.experiments.statistics.boundary_crossing import first_crossings
from services.experiments.statistics.sequential import critical_z, rho_for

LOOKS = 50  # of a forecast; more change it by about a percent


@dataclass(frozen=True, slots=True)
class SequentialSample:
    """What a confidence sequence needs, in units of both arms together."""

    units: float  # by which the effect is found with the power asked for
    expected_units: float  # seen on average when one stops as soon as it is found, or at `units`
    rho: float  # the sequence's


def binary_variance(rate: float) -> float:
    """Of a unit that converts with this rate; ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise ValueError(f"a rate lies between 0 and 1, not {rate}. Give a share, not percent.")
    return rate * (1 - rate)


def contribution_variance(treatment: float, control: float, share: float = 0.5) -> float:
    """Variance of a unit's contribution to the difference (see `sequential`): n times the variance
    of the difference when `share` of n units are in treatment."""
    return treatment / share + control / (1 - share)


def sample_size(
    effect: float,
    treatment_variance: float,
    control_variance: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    share: float = 0.5,
    cuped_rho: float = 0.0,
) -> int:
    """Units of both arms for a two-sided test at a fixed horizon to find `effect` (absolute) with
    this power.

    n = (z_{1-alpha/2} + z_power)² · variance of a contribution · (1 - rho²) / effect², where rho is
    `cuped_rho`, the covariate's correlation with the metric (0 without CUPED).
    """
    spread = contribution_variance(treatment_variance, control_variance, share)
    n = _fixed_units(effect, spread, alpha, power) * _cuped_factor(cuped_rho)
    return math.ceil(n * share) + math.ceil(n * (1 - share))


def sequential_sample(
    effect: float,
    treatment_variance: float,
    control_variance: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    share: float = 0.5,
    cuped_rho: float = 0.0,
    rho: float | None = None,
) -> SequentialSample:
    """The same for the confidence sequence, looked at `LOOKS` times at even distances.

    It takes the variances as `sequential.stabilised` leaves them, once the effect is there: those
    of the units of both arms together where an arm's own is lower. `rho` is the sequence's; without
    one it is tuned to the sample that is found (at the report's level, whatever `alpha` is).
    """
    saved = _cuped_factor(cuped_rho)
    t, c = treatment_variance * saved, control_variance * saved
    together = share * t + (1 - share) * c + share * (1 - share) * effect**2
    spread = contribution_variance(t, c, share)
    taken = contribution_variance(max(t, together), max(c, together), share)
    return _sequential(effect, spread, taken, alpha, power, rho)


def guardrail_sample(
    margin: float,
    variance: float,
    *,
    rho: float,
    factor: float = 1.0,
    alpha: float = 0.05,
    power: float = 0.8,
    share: float = 0.5,
    cuped_rho: float = 0.0,
) -> SequentialSample:
    """Units of both arms that show that a guardrail holds, when nothing is harmed.

    `margin` is in the metric's own unit, `variance` a unit's in both arms, `rho` the sequence's,
    `factor` by how much control is multiplied in the contrast (`harm.excess`).
    """
    saved = variance * _cuped_factor(cuped_rho)
    spread = contribution_variance(saved, factor**2 * saved, share)
    return _sequential(margin, spread, spread, alpha, power, rho)


def _sequential(
    effect: float, spread: float, taken: float, alpha: float, power: float, rho: float | None
) -> SequentialSample:
    """`spread` is the variance of a unit's contribution, `taken` what the sequence takes it for."""
    fixed = _fixed_units(effect, spread, alpha, power)

    def plan(factor: float) -> tuple[NDArray[np.float64], float]:
        units = np.linspace(0, fixed * factor, LOOKS + 1)[1:]
        return units, rho or rho_for(float(units[-1]))

    def chance(factor: float) -> NDArray[np.float64]:
        units, of_sequence = plan(factor)
        return detection_chance(units, effect, spread, of_sequence, alpha, taken)

    def missing_at_the_end(factor: float) -> float:
        """As if only the last look counted: cheap, and never less than what all looks miss."""
        units = fixed * factor
        bound = float(critical_z(units, rho or rho_for(units), alpha)) * math.sqrt(taken / spread)
        return power - float(special.ndtr(abs(effect) * math.sqrt(units / spread) - bound))

    most = 2.0
    while missing_at_the_end(most) > 0:
        most *= 2
    most = optimize.brentq(missing_at_the_end, most / 16, most)
    factor = optimize.brentq(
        lambda x: power - float(chance(x)[-1]), most / 2, most, xtol=1e-3 * most
    )
    units, of_sequence = plan(factor)
    return SequentialSample(float(units[-1]), expected_units(units, chance(factor)), of_sequence)


def detection_chance(
    units: ArrayLike,
    effect: float,
    variance: float,
    rho: float,
    alpha: float = 0.05,
    taken: float | None = None,
) -> NDArray[np.float64]:
    """Chance that the confidence sequence has excluded 0 by each look (looks,).

    `units` (looks,) of both arms at each look (of each day: the runtime forecast), `variance` of a
    unit's contribution, `taken` what the sequence takes it for; None: just that.
    """
    bounds = np.asarray(critical_z(np.asarray(units, dtype=np.float64), rho, alpha))
    bounds = bounds * math.sqrt((taken or variance) / variance)
    return np.cumsum(first_crossings(units, bounds, effect / math.sqrt(variance)))


def expected_units(units: ArrayLike, chance: ArrayLike) -> float:
    """Mean sample when one stops at the first look that finds the effect, at the last at latest.

    `chance` (looks,) that it is found by each look.
    """
    n = np.asarray(units, dtype=np.float64)
    going = 1 - np.concatenate([[0.0], np.asarray(chance, dtype=np.float64)[:-1]])
    return float(np.diff(n, prepend=0.0) @ going)


def _fixed_units(effect: float, spread: float, alpha: float, power: float) -> float:
    if not alpha < power < 1:
        raise ValueError(f"power must lie between alpha and 1, not {power}. 0.8 is usual.")
    if effect == 0 or not math.isfinite(effect):
        raise ValueError(f"an effect of {effect} cannot be planned for. Give the smallest of use.")
    z = float(special.ndtri(1 - alpha / 2) + special.ndtri(power))
    return z * z * spread / effect**2


def _cuped_factor(rho: float) -> float:
    if not -1 < rho < 1:
        raise ValueError(f"a correlation lies between -1 and 1, not {rho}")
    return 1 - rho**2
