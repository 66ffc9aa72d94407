"""Sample ratio: exact e-values, rare false alarms however often one looks, and the right hop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from services.experiments.statistics.sample_ratio import (
    LOSSES_CONCENTRATION,
    HopLoss,
    log_e_value,
    name_the_hop,
)

WEIGHTS = st.lists(st.integers(1, 90), min_size=2, max_size=4)
HOPS = "assigned", "served", "joined"


@given(WEIGHTS, st.data(), st.sampled_from([1.0, 10.0, 10_000.0]))
def test_the_e_value_is_the_product_of_predictions_unit_by_unit(
    weights: list[int], data: st.DataObject, concentration: float
) -> None:
    """Polya's urn, one unit after the other, against the declared shares."""
    arms = data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=60))
    shares = np.array(weights) / sum(weights)
    seen, log_e = np.zeros(len(weights)), 0.0
    for n, arm in enumerate(arms):
        predicted = (concentration * shares[arm] + seen[arm]) / (concentration + n)
        log_e += math.log(predicted / shares[arm])
        seen[arm] += 1
    assert log_e_value(seen, weights, concentration) == pytest.approx(log_e, abs=1e-8)


@pytest.mark.parametrize("weights", [[1, 1], [9, 1], [5, 3, 2]])
@pytest.mark.parametrize("units", [1, 7, 30])
def test_under_the_null_its_expectation_is_one(weights: list[int], units: int) -> None:
    """Summed over every outcome of the multinomial."""
    shares = np.array(weights) / sum(weights)
    outcomes = [
        (*rest, units - sum(rest))
        for rest in itertools.product(range(units + 1), repeat=len(weights) - 1)
        if sum(rest) <= units
    ]
    chance = stats.multinomial.pmf(outcomes, units, shares)
    assert chance @ np.exp(log_e_value(outcomes, weights, 10.0)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("entered", "lost"), [((30, 30), 7), ((50, 10), 20), ((8, 5), 12)])
def test_against_the_shares_of_those_who_entered_it_is_at_most_one(
    entered: tuple[int, int], lost: int
) -> None:
    """Equal loss draws without replacement: summed over the hypergeometric distribution."""
    first = np.arange(max(0, lost - entered[1]), min(lost, entered[0]) + 1)
    chance = stats.hypergeom.pmf(first, sum(entered), entered[0], lost)
    e = np.exp(log_e_value(np.stack([first, lost - first], axis=1), entered, LOSSES_CONCENTRATION))
    assert chance.sum() == pytest.approx(1)
    assert 0.3 < chance @ e <= 1


def test_strong_evidence_is_what_chi_square_calls_beyond_doubt() -> None:
    counts = np.array([[50_000, 50_000], [50_300, 49_700], [51_000, 49_000]])
    p = stats.chisquare(counts, counts.sum(axis=1, keepdims=True) / 2, axis=1).pvalue
    assert (p > [0.9, 0.05, 0]).all()
    assert p[2] < 1e-9
    even, slight, gross = log_e_value(counts, [1, 1])
    assert even < slight < 0.5
    assert gross > math.log(1e6)


def stream(
    rng: np.random.Generator,
    runs: int,
    losses: NDArray[np.float64],
    weights: tuple[float, float] = (0.5, 0.5),
) -> NDArray[np.int64]:
    """Cumulative counts (runs, looks, hops, arms) of 100,000 units in 100 batches; `losses` (hops
    after the first, arms) is the chance of being lost there."""
    entered = rng.binomial(1_000, weights[0], (runs, 100))
    counts = [np.stack([entered, 1_000 - entered], axis=-1)]
    for chance in losses:
        counts.append(counts[-1] - rng.binomial(counts[-1], chance))
    return np.cumsum(np.stack(counts, axis=-2), axis=1)


BASELINE = np.array([[0.003, 0.003], [0.02, 0.02]])


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1)])
def test_a_healthy_stream_rarely_alarms_though_watched_throughout(
    weights: tuple[float, float],
) -> None:
    counts = stream(np.random.default_rng(1), 500, BASELINE, weights)
    ceiling = 0.01 + 3 * math.sqrt(0.01 * 0.99 / 500)
    assert (log_e_value(counts[:, :, 0], weights) >= math.log(100)).any(axis=1).mean() <= ceiling
    blamed = [any(h.broken for look in run for h in named(look)) for run in counts[:, ::10]]
    assert np.mean(blamed) <= ceiling


def named(counts: NDArray[np.int64]) -> list[HopLoss]:
    """At the level of reports; `counts` (hops, arms)."""
    return name_the_hop([dict(zip(HOPS, counts.tolist(), strict=True))], 0.01)


@pytest.mark.parametrize("hop", [0, 1])
def test_one_percent_lost_in_one_arm_is_found_and_its_hop_named(hop: int) -> None:
    losses = BASELINE.copy()
    losses[hop, 1] += 0.01
    counts = stream(np.random.default_rng(2), 50, losses)
    broken = [[found.broken for found in named(run)] for run in counts[:, -1]]
    assert np.mean([each == [place == hop for place in range(2)] for each in broken]) >= 0.95


def test_arms_alone_could_not_have_told() -> None:
    """Of 100,000 units 1 % of one arm lost is 1.6 standard errors: found in few streams."""
    rng = np.random.default_rng(3)
    left = np.stack([np.full(500, 50_000), rng.binomial(50_000, 0.99, 500)], axis=1)
    assert (log_e_value(left, [1, 1]) >= math.log(100)).mean() < 0.05


def test_the_diagnosis_says_what_was_lost_where() -> None:
    hops = {"assigned": [1_000, 1_000], "served": [990, 990], "logged": [980, 780]}
    served, logged = name_the_hop([hops])
    assert (served.source, served.target, served.broken) == ("assigned", "served", False)
    assert (logged.source, logged.target, logged.broken) == ("served", "logged", True)
    assert logged.lost == (10, 210)
    assert logged.rates == pytest.approx((10 / 990, 210 / 990))
    assert served.p_value == 1
    assert logged.p_value < 1e-9


def test_a_name_takes_the_number_of_hops_over_its_evidence() -> None:
    hops = {"assigned": [900, 1_100], "served": [890, 1_050], "joined": [885, 1_040]}
    e = math.exp(log_e_value([10, 50], [900, 1_100], LOSSES_CONCENTRATION))
    assert name_the_hop([hops])[0].p_value == pytest.approx(2 / e)


def test_wrong_arrivals_blame_no_hop() -> None:
    hops = {"assigned": [52_000, 48_000], "served": [51_900, 47_900]}
    assert log_e_value(hops["assigned"], [1, 1]) > math.log(100)
    assert not any(finding.broken for finding in name_the_hop([hops]))


@pytest.mark.parametrize("hops", [{}, {"assigned": [5, 5]}, {"assigned": [5, 0], "served": [1, 0]}])
def test_with_nothing_to_compare_no_hop_is_broken(hops: dict[str, list[int]]) -> None:
    assert not any(finding.broken for finding in name_the_hop([hops]))


def test_an_outage_in_a_time_that_one_arm_did_not_live_through_blames_nobody() -> None:
    calm = {"assigned": [5000, 5000], "served": [5000, 5000]}
    outage = {"assigned": [5000, 0], "served": [4000, 0]}
    (pooled,) = name_the_hop([{"assigned": [10_000, 5000], "served": [9000, 5000]}])
    (within,) = name_the_hop([calm, outage])
    assert pooled.broken
    assert not within.broken
    assert (within.entered, within.lost) == ((10_000, 5000), (1000, 0))


def test_evidence_of_loss_in_several_times_multiplies() -> None:
    uneven = {"assigned": [5000, 5000], "served": [4990, 4975]}
    (once,), (twice,) = (name_the_hop([uneven] * n) for n in (1, 2))
    assert 0.01 < once.p_value < 1
    assert twice.p_value == pytest.approx(once.p_value**2)
    assert name_the_hop([]) == []
