"""Sample ratio mismatch (SRM): arms whose sizes the weights do not explain, and the hop at fault.

A unit goes through hops: assigned -> served -> joined. If a hop loses units of one arm more than of
another, the arms that remain are no longer alike and every effect is suspect. The evidence is that
of Lindon and Malek (arXiv 2011.03567): the Bayes factor of a Dirichlet prior over the arms' shares
against the declared weights.

- Arrivals: the arms of the units at the first hop against the weights. It is an e-process (under
  the null its expectation is 1 at any stopping time), so it may be acted upon.
- Losses: the arms of the units that a hop lost, against the shares of those that entered it.

Losses are by far the sharper: of 100,000 units, 1 % lost in one of two arms shifts that arm's share
by 0.25 percentage points, 1.6 standard errors, which no test tells reliably from chance; but 500
losses all in one arm are beyond doubt after a few dozen. But only records tell of losses: units
lost before the log are seen in the arrivals only.

Count units once, and only those whose time is up at every hop (joined: the window is over).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

# Weights of the Dirichlet prior in pseudo-units: how close to the null the alternative is thought.
# A ratio is off by little when it is off, so arrivals concentrate; a broken hop shows any share.
ARRIVALS_CONCENTRATION = 10_000.0
LOSSES_CONCENTRATION = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HopLoss:
    """What happened between two hops."""

    source: str
    target: str
    entered: tuple[int, ...]  # units per arm
    lost: tuple[int, ...]
    p_value: float  # that loss differs between arms, corrected for the number of hops
    broken: bool

    @property
    def rates(self) -> tuple[float, ...]:
        """Share lost per arm; 0 for an arm that nobody entered."""
        return tuple(
            lost / entered if entered else 0.0
            for lost, entered in zip(self.lost, self.entered, strict=True)
        )


def log_e_value(
    counts: ArrayLike, weights: Sequence[float], concentration: float = ARRIVALS_CONCENTRATION
) -> NDArray[np.float64]:
    """Log of the evidence that units do not fall into arms by the weights.

    `counts` (..., arms) are cumulative; `weights` (arms,) positive, in any unit. With θ the weights
    as shares, a = concentration · θ and n units of which c_i in arm i,

        e = Γ(Σa)/Γ(Σa + n) · Π Γ(a_i + c_i)/Γ(a_i) / Π θ_i^c_i      (arXiv 2011.03567, section 3)

    Under the null the chance that e ever reaches 1/alpha is at most alpha, however often one looks
    and for small counts, too.
    """
    c = np.asarray(counts, dtype=np.float64)
    theta = np.asarray(weights, dtype=np.float64)
    theta = theta / theta.sum()
    a = concentration * theta
    evidence = special.gammaln(concentration) - special.gammaln(concentration + c.sum(axis=-1))
    terms = special.gammaln(a + c) - special.gammaln(a) - c * np.log(theta)
    return np.asarray(evidence + terms.sum(axis=-1))


def name_the_hop(
    strata: Sequence[Mapping[str, Sequence[int]]], alpha: float = 0.05
) -> list[HopLoss]:
    """Each hop's loss and whether it differs between arms.

    `strata` are of different units (times in which other arms were live), each of hops in order,
    name -> units per arm, all with the same hops and arms; an arm that nobody entered is not
    compared there. Loss may differ between strata, so each is judged by itself, and the e-values
    of different units multiply.

    Each hop is judged given who entered it, so a break before it does not blame it. The evidence is
    the Bayes factor of `log_e_value` of the lost units against the shares of those who entered.
    That is an e-value: given the numbers entered and lost, equal loss draws the lost units without
    replacement, which spreads less than draws with replacement, for which the expectation is 1, and
    the factor is convex in the counts (Hoeffding 1963, Theorem 4). A p-value is the number of hops
    over e (Bonferroni). It holds at a single look; watched at a hundred it blames a sound hop no
    more often than it says (load_tests/experiments/bench_experiments.py), but nothing proves that:
    it warns, and `losses` acts.

    None broken although the arrivals are off: assignment, or what was lost before the log.
    """
    if not strata or len(names := list(strata[0])) < 2:
        return []
    counts = np.array([[hops[name] for name in names] for hops in strata], dtype=np.int64)
    lost = counts[:, :-1] - counts[:, 1:]
    found = []
    for i in range(len(names) - 1):
        log_e = sum(_log_e_of_loss(counts[s, i], lost[s, i]) for s in range(len(strata)))
        p = min(1.0, (len(names) - 1) * math.exp(-max(log_e, 0.0)))
        entered, gone = (tuple(c[:, i].sum(axis=0).tolist()) for c in (counts, lost))
        found.append(
            HopLoss(
                source=names[i],
                target=names[i + 1],
                entered=entered,
                lost=gone,
                p_value=p,
                broken=p <= alpha,
            )
        )
    return found


def _log_e_of_loss(entered: NDArray[np.int64], lost: NDArray[np.int64]) -> float:
    """Log of the evidence that loss depends on the arm."""
    present = entered > 0
    if present.sum() < 2:
        return 0.0
    shares = entered[present].astype(np.float64).tolist()
    return float(log_e_value(lost[present], shares, LOSSES_CONCENTRATION))
