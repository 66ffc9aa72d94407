"""Which losses of units a report can tell, and how soon (see `bench_experiments`)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

from models.figures import print_table
from services.experiments.report.build import SRM_ALPHA
from services.experiments.statistics.sample_ratio import log_e_value, name_the_hop

Floats = NDArray[np.float64]

HOPS = ("assigned", "served", "joined")
HEALTHY = np.array([[0.003, 0.003], [0.02, 0.02]])
STREAM, SRM_LOOKS, SRM_RUNS = 100_000, 100, 500


def sample_ratio(seed: int) -> None:
    """100,000-unit streams, watched after every thousand units as the report does: the arrivals,
    and which hop is blamed; and what is lost of an arm before the log, where only arrivals tell."""
    rng = np.random.default_rng(seed)
    even, uneven = (0.5, 0.5), (0.9, 0.1)
    cases: list[tuple[str, tuple[float, float], float, int | None]] = [
        ("healthy, 50:50", even, 0.0, None),
        ("healthy, 90:10", uneven, 0.0, None),
        ("1 % of an arm not served", even, 0.01, 0),
        ("1 % of an arm not joined", even, 0.01, 1),
        ("1 % of an arm lost before the log", even, 0.01, None),
        ("5 % of an arm lost before the log", even, 0.05, None),
    ]
    rows = []
    for name, weights, lost, hop in cases:
        losses = HEALTHY.copy()
        if hop is not None:
            losses[hop, 1] += lost
        counts = _hops_by_look(rng, weights, losses, lost if hop is None else 0.0)
        arrived = counts[:, :, 0]
        alarmed = log_e_value(arrived, weights) >= -math.log(SRM_ALPHA)
        expected = arrived.sum(axis=-1, keepdims=True) * np.array(weights)
        chi_square = ((arrived - expected) ** 2 / expected).sum(axis=-1)
        peeked = special.chdtrc(1, chi_square) <= SRM_ALPHA
        blamed = np.array([[_blamed(look) for look in run] for run in counts])  # by look, hop
        ever = np.asarray(blamed.any(axis=1))
        own = ever[:, hop] if hop is not None else np.zeros(SRM_RUNS, bool)
        at = blamed[own, :, hop or 0].argmax(axis=1) + 1
        rows.append(
            (
                name,
                f"{alarmed.any(axis=1).mean():.1%}",
                "" if hop is None else f"{own.mean():.1%}",
                f"{np.median(at) * STREAM / SRM_LOOKS:,.0f}" if own.any() else "",
                f"{(ever.sum(axis=1) > own).mean():.1%}",
                f"{peeked.any(axis=1).mean():.1%}",
            )
        )
    print_table(
        f"Sample ratio: {SRM_RUNS:,} streams of {STREAM:,} units, {SRM_LOOKS} looks, alpha "
        f"{SRM_ALPHA:.0%}",
        [
            "stream",
            "sizes alarm",
            "hop blamed",
            "after units",
            "another blamed",
            "chi-square peeked",
        ],
        rows,
    )


def _blamed(counts: NDArray[np.int64]) -> list[bool]:
    """Which hops are said to lose an arm's units; `counts` (hops, arms)."""
    found = name_the_hop([dict(zip(HOPS, counts.tolist(), strict=True))], SRM_ALPHA)
    return [hop.broken for hop in found]


def _hops_by_look(
    rng: np.random.Generator, weights: tuple[float, float], losses: Floats, before: float
) -> NDArray[np.int64]:
    """Cumulative counts (streams, looks, hops, arms); `before` is lost of the second arm before
    anything is counted."""
    batch = STREAM // SRM_LOOKS
    first = rng.binomial(batch, weights[0], (SRM_RUNS, SRM_LOOKS))
    entered = np.stack([first, rng.binomial(batch - first, 1 - before)], axis=-1)
    counts = [entered]
    for chance in losses:
        counts.append(counts[-1] - rng.binomial(counts[-1], chance))
    return np.cumsum(np.stack(counts, axis=-2), axis=1)
