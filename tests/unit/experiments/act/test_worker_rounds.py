"""How often the worker goes round."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.experiments.act.worker import round_s

SECONDS = st.floats(0, 1000)


@given(every_s=SECONDS, took_s=st.floats(0, 15))
def test_a_breach_is_seen_within_half_a_minute_if_measuring_can_be_done_in_half_of_that(
    every_s: float, took_s: float
) -> None:
    assert round_s(every_s, took_s) <= max(every_s, 30)


@given(every_s=SECONDS, took_s=SECONDS)
def test_measuring_leaves_half_of_the_time_to_reading(every_s: float, took_s: float) -> None:
    assert round_s(every_s, took_s) >= max(every_s, 2 * took_s)


@given(every_s=SECONDS, took_s=st.floats(0, 6))
def test_quick_measuring_takes_a_fifth_of_the_time(every_s: float, took_s: float) -> None:
    assert round_s(every_s, took_s) >= 4.999 * took_s
