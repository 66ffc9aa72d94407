"""Wilson's interval of a rate, for tables of benchmarks and of the demo."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a rate: those that `successes` of `n` do not rule out at 95 %.

    Unlike p ± z·se it stays within [0, 1] and has a width at 0 and at n successes (Wilson 1927).
    Without any trial every rate is possible: (0, 1). Trials must be independent: clicks of one
    user are not quite, so the interval is somewhat too narrow. ValueError unless
    0 <= successes <= n.
    """
    if successes == n == 0:
        return 0.0, 1.0
    found = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
