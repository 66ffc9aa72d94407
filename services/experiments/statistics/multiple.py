"""Adjusted p-values where several metrics are judged together.

Both take always-valid p-values as well: what is adjusted at a look is then valid at that look
whenever it was chosen. (For false discoveries over time in the strict sense use e-values.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's adjusted p-values: rejecting those up to alpha makes any error with probability at
    most alpha, however the tests depend on each other (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Benjamini-Hochberg's adjusted p-values: among those up to q, the expected share of false ones
    is at most q when the tests are independent or positively dependent (1995)."""
    p = np.asarray(p_values, dtype=np.float64)
    return np.asarray(stats.false_discovery_control(p, method="bh")) if len(p) else p
