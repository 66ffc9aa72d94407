"""Small pure statistics of experiments. Nothing here reads a clock, a log or a setting."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate: the rates that `successes` of `n` do not rule out.

    Unlike p ± z·se it stays within [0, 1] and has a width at 0 and at n successes (Wilson 1927).
    Without any trial every rate is possible: (0, 1). Trials must be independent: clicks of one
    user are not quite, so the interval is somewhat too narrow. ValueError unless
    0 <= successes <= n and 0 < confidence < 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials are impossible")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # The exact bounds at 0 and n successes are 0 and 1; rounding must not miss them.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high
