"""How many units enter on which day: traffic and ramps."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.experiments.declare.config import Ramp
from services.experiments.plan.traffic import along, come_by, days_until, traffics
from tests.unit.experiments.plan.plans import (
    experiment,
    planned,
    ramp,
)


def test_a_ramp_is_forecast_at_every_step_and_along_it() -> None:
    found = planned(experiment(ramp=ramp(1, 10, 50)))
    assert [traffic.name for traffic in found.traffics] == ["1 %", "10 %", "50 %", "the ramp"]
    slow, middle, fast, along_it = found.metrics[0].sequential.days
    assert slow > middle > along_it > fast


def test_a_ramp_that_is_at_its_last_step_at_once_is_that_traffic() -> None:
    assert along(ramp(50), [10, 4], 0)[:2] == pytest.approx((5, 2))
    assert along(ramp(1, 10, 50, hold_days=0), [10, 4], 0)[:2] == pytest.approx((5, 2))


def test_a_step_waits_for_its_units_and_their_outcomes() -> None:
    """10 % of 100 a day are 10 new ones: 30 have come after three days, are final after four."""
    entering = along(ramp(10, 100, hold_days=1, min_units=30), [100], 1)
    assert entering[:3] == pytest.approx((10, 10, 10), abs=0.1)
    assert entering[3] == pytest.approx(10, abs=0.1)
    assert entering[4] == pytest.approx(100, abs=0.1)


def test_a_ramp_whose_units_never_come_stays_where_it_is() -> None:
    assert sum(along(ramp(10, 100, min_units=30), [100, 0], 1)) == pytest.approx(10)


steps = st.lists(st.integers(1, 10_000), min_size=1, max_size=5, unique=True).map(sorted)
coming = st.lists(st.integers(0, 1000), min_size=1, max_size=8)


@given(steps, coming, st.floats(0, 5), st.integers(0, 300))
def test_a_ramp_lets_in_no_more_than_its_last_step_and_no_less_than_its_first(
    buckets: list[int], arriving: list[int], hold_days: float, min_units: int
) -> None:
    falling = sorted(arriving, reverse=True)
    own = Ramp(tuple(buckets), hold_days * 86_400, min_units)
    entered = 0.0
    for day, new in enumerate(along(own, falling, 1.0), 1):
        entered += new
        assert new >= -1e-6
        assert entered <= buckets[-1] / 10_000 * come_by(falling, day) + 1e-6
        assert entered >= buckets[0] / 10_000 * come_by(falling, day) - 1e-6


@given(coming, st.floats(0.1, 30))
def test_days_until_units_have_come_are_the_inverse_of_units_by_days(
    arriving: list[int], days: float
) -> None:
    units = come_by(arriving, days)
    found = days_until(units, arriving)
    assert found <= days + 1e-6
    assert come_by(arriving, found) == pytest.approx(units, abs=1e-6)


@given(coming, st.lists(st.floats(0.1, 30), min_size=2, max_size=5).map(sorted))
def test_units_that_have_come_never_fall(arriving: list[int], days: list[float]) -> None:
    come = [come_by(arriving, day) for day in days]
    assert all(a <= b + 1e-9 for a, b in pairwise(come))


def test_stopped_arms_get_no_part_of_the_traffic() -> None:
    own = experiment(weights=(50, 25, 25))
    own = replace(own, arms=(*own.arms[:2], replace(own.arms[2], stopped=True)))
    assert traffics(own, [100.0], 0.0)[0].per_day == (75.0,)
    assert {m.arm for m in planned(own).metrics} == {"b"}


@pytest.mark.parametrize(
    ("units", "traffic", "days"),
    [
        (250, [100], 2.5),
        (250, [100, 50], 4.0),
        (100, [100, 50], 1.0),
        (150, [0, 100, 100], 2.5),
        (10, [5, 0], math.inf),
        (0, [5], 0.0),
    ],
)
def test_days_until_the_units_have_come(units: float, traffic: list[float], days: float) -> None:
    assert days_until(units, traffic) == days
