"""When a z-score that is watched at several looks first leaves its bounds: exact, no simulation.

The recursion of Armitage, McPherson and Rowe (1969) for a Brownian motion with drift seen at the
looks. It forecasts the confidence sequence's sample and shows what peeking does to a fixed test.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

_TAIL = 9.0  # standard errors beyond which no mass is left
_NODES_PER_STEP = 4  # quadrature nodes within one standard deviation of a step
LEAST_STEP = 1e-3
_NODES = 32  # granularity, so that rules are shared


def first_crossings(units: ArrayLike, bounds: ArrayLike, drift: float = 0.0) -> NDArray[np.float64]:
    """P(the first look with |z| >= bound is the k-th), (looks,).

    `units` (looks,) rising sample at each look, `bounds` (looks,) for |z|, `drift` the mean of z
    per root of units: effect / standard deviation of a unit's contribution. What is missing to 1
    never leaves the bounds. The work grows with the looks squared; a hundred take a tenth of a
    second. A look that brings less than LEAST_STEP of the whole sample is taken together with the
    next: alone it would cost seconds and can change next to nothing.
    """
    t = np.asarray(units, dtype=np.float64)
    z = np.asarray(bounds, dtype=np.float64)
    scale = math.sqrt(t[-1])  # to time 1 at the last look
    t, mu = t / t[-1], drift * scale
    found = np.zeros(len(t))
    nodes, mass = np.zeros(1), np.ones(1)  # a point mass at 0
    before = 0.0
    for k, (now, bound) in enumerate(zip(t.tolist(), z.tolist(), strict=True)):
        step = now - before
        if step < LEAST_STEP:
            continue
        sd = math.sqrt(step)
        edge, reach = bound * math.sqrt(now), _TAIL * math.sqrt(now)
        ahead = nodes + mu * step
        out = special.ndtr((ahead - edge) / sd) + special.ndtr((-edge - ahead) / sd)
        found[k] = float(mass @ out)
        low, high = max(-edge, mu * now - reach), min(edge, mu * now + reach)
        if low >= high:  # all mass is out
            break
        half = (high - low) / 2
        count = _NODES * math.ceil(max(1.0, 2 * half / sd * _NODES_PER_STEP / _NODES))
        unit_nodes, unit_weights = _rule(count)
        new = low + half * (unit_nodes + 1)
        kernel = np.exp(-(((new[:, None] - ahead) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
        mass = (kernel @ mass) * unit_weights * half
        nodes, before = new, now
    return found


@lru_cache(maxsize=64)
def _rule(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre on [-1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes, weights
