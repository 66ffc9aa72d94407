"""Arms compared within strata: the splits that were in force one after the other, or days.

When the split between arms changes while the metric drifts, the pooled arms are of different days
and differ without any effect (Simpson's paradox). Within a stratum the split is constant, so arms
are compared there, and the strata are put together.

A stratum weighs w = n_t n_c / (n_t + n_c): its precision if a unit varies alike in both arms. The
weights depend on counts only, never on outcomes, so the sum of w times the difference is again a
sum of independent contributions, and the confidence sequence holds for it. Its clock is the units
that would weigh as much at the planned split, which is what `rho_for` was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from services.experiments.statistics.estimates import Estimate, Real, unknown


def stratified(
    strata: Sequence[tuple[Estimate, Estimate]], share: float = 0.5
) -> tuple[Estimate, Estimate]:
    """Treatment and control over strata of (treatment, control), to be compared as usual.

    value = Σ w value / Σ w, variance = Σ w² variance / (Σ w)², with the same w for both arms, so
    that the difference is the weighted mean of the strata's differences. `share` is treatment's
    planned share of the units (of an arm that had no traffic at first: a half). Apply
    `sequential.stabilised` within each stratum before. A stratum where an arm has no known error
    yet is left out.
    """
    share = share if 0 < share < 1 else 0.5
    weights = [np.where(t.known & c.known, _weight(t.n, c.n), 0.0) for t, c in strata]
    total = np.asarray(sum(weights, np.zeros(())))
    if not strata or not (total > 0).any():
        return unknown(0), unknown(0)
    units = total / (share * (1 - share))
    treatment = _combined([t for t, _ in strata], weights, units * share)
    control = _combined([c for _, c in strata], weights, units * (1 - share))
    return treatment, control


def _weight(treated: Real, untreated: Real) -> Real:
    return treated * untreated / np.maximum(treated + untreated, 1.0)


def _combined(arms: Sequence[Estimate], weights: Sequence[Real], n: Real) -> Estimate:
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [np.asarray(w / sum(weights)) for w in weights]

        def total(parts: Iterable[Real]) -> NDArray[np.float64]:
            """Over the strata that are not left out."""
            present = zip(shares, parts, strict=True)
            return np.asarray(sum(np.where(share > 0, part, 0.0) for share, part in present))

        each = list(zip(shares, arms, strict=True))
        variance = total(share**2 * arm.variance for share, arm in each)
        # Welch-Satterthwaite's, over the strata.
        dof = variance**2 / total((share**2 * arm.variance) ** 2 / arm.dof for share, arm in each)
        return Estimate(
            total(share * arm.value for share, arm in each)[()],
            variance[()],
            n,
            np.where(np.isfinite(dof), dof, 0.0)[()],
            total(share**2 * arm.common for share, arm in each)[()],
        )
