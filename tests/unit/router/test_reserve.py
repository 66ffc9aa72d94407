"""The reserve follows what answering takes, between what the settings say and a quarter."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.reserve import ENOUGH, MOST, Reserve


@pytest.mark.parametrize("scale_ms", [2, 5, 8])
@pytest.mark.parametrize("begin_s", [0.005, 0.06])
def test_it_settles_where_the_declared_share_of_answers_has_the_least_left(scale_ms, begin_s):
    draw = random.Random(3)
    subject = Reserve(0.005, 0.25)
    subject.seconds = begin_s
    enough = []
    for _ in range(60_000):
        left_s = subject.seconds - draw.expovariate(1000 / scale_ms)  # what answering took
        enough.append(left_s >= 0.005)
        subject.answered(left_s)
    assert sum(enough[10_000:]) / len(enough[10_000:]) == pytest.approx(ENOUGH, abs=0.003)


def test_one_late_answer_is_noticed_and_calm_forgets_it():
    subject = Reserve(0.005, 0.25)
    subject.answered(0.0)
    assert subject.seconds == pytest.approx(0.00995)
    for _ in range(99):
        subject.answered(0.2)
    assert subject.seconds == pytest.approx(0.005)


@given(
    lefts=st.lists(st.floats(-1, 1), max_size=200), least=st.floats(0, 1), time=st.floats(0.001, 10)
)
def test_it_never_leaves_its_bounds(lefts, least, time):
    subject = Reserve(least, time)
    for left_s in lefts:
        subject.answered(left_s)
        assert least <= subject.seconds <= max(least, MOST * time)
