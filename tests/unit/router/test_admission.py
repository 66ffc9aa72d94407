"""What the door lets in: what can be answered in time, whatever is asked of it."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.batcher import Overloaded
from services.router.admission import AIM, FEW, START_S, Admission

TIME_S = 0.25  # that each request has
SECONDS = st.floats(1e-4, 1.0)


def entered(subject: Admission, count: int, allowed_s: float = TIME_S) -> list[tuple[float, int]]:
    """So many requests at work."""
    return [(allowed_s, subject.enter(allowed_s)) for _ in range(count)]


def burst(subject: Admission, allowed_s: float = TIME_S) -> int:
    """How many of one moment are let in."""
    let_in = []
    try:
        while True:
            let_in.append((allowed_s, subject.enter(allowed_s)))
    except Overloaded:
        for work in let_in:
            subject.leave(*work, None)
    return len(let_in)


def taught(count: int, took_s: float, *, times: int = 200) -> Admission:
    """A door whose requests, `count` at work, have taken so long."""
    subject = Admission(10_000)
    for _ in range(times):
        *others, last = entered(subject, count)
        subject.leave(*last, took_s)
        for work in others:
            subject.leave(*work, None)
    return subject


class Behind:
    """What is behind the door: one server that takes `fixed_s + per_request_s` for each request in
    turn, the fixed part side by side, and computes what is late as well as what is not."""

    def __init__(self, per_request_s: float, fixed_s: float = 0.005) -> None:
        self.per_request_s, self.fixed_s = per_request_s, fixed_s
        self._free_s = 0.0

    def done(self, now_s: float, draw: random.Random) -> float:
        self._free_s = max(self._free_s, now_s) + self.per_request_s * draw.uniform(0.5, 1.5)
        return self._free_s + self.fixed_s


def answered(
    subject: Admission, behind: Behind, asked_per_s: float, seconds: float, begin_s: float = 0.0
) -> Counter[str]:
    """What comes of Poisson arrivals: whole, late and refused answers."""
    draw = random.Random(7)
    outcomes: Counter[str] = Counter()
    at_work: list[tuple[float, float, tuple[float, int]]] = []
    now_s = begin_s

    def leave(until_s: float) -> None:
        while at_work and at_work[0][0] <= until_s:
            _, took_s, work = heapq.heappop(at_work)
            subject.leave(*work, took_s)
            outcomes["whole" if took_s <= TIME_S else "late"] += 1

    while now_s < begin_s + seconds:
        now_s += draw.expovariate(asked_per_s)
        leave(now_s)
        try:
            work = (TIME_S, subject.enter(TIME_S))
        except Overloaded:
            outcomes["refused"] += 1
        else:
            took_s = behind.done(now_s, draw) - now_s
            # A late one is given up when its time is over; the server does not know.
            heapq.heappush(at_work, (now_s + min(took_s, TIME_S), took_s, work))
    leave(float("inf"))
    return outcomes


@pytest.mark.parametrize("per_request_s", [0.001, 0.005, 0.02])
@pytest.mark.parametrize("times", [1.5, 3, 5, 20])
def test_whole_answers_stay_at_the_capacity_however_much_is_asked(per_request_s, times):
    subject, behind = Admission(10_000), Behind(per_request_s)
    capacity = 1 / per_request_s
    answered(subject, behind, times * capacity, 2.0)  # nobody knows yet how long they take
    outcomes = answered(subject, behind, times * capacity, 10.0, begin_s=3.0)
    assert outcomes["whole"] >= 0.95 * capacity * 10.0
    assert outcomes["late"] <= 0.03 * outcomes["whole"]


def test_without_the_door_late_work_displaces_all_timely_work():
    class Open(Admission):
        def enter(self, allowed_s):
            self.per_request_s = 0.0
            return super().enter(allowed_s)

    outcomes = answered(Open(10**9), Behind(0.007), 3 / 0.007, 10)
    assert outcomes["whole"] <= 0.1 * 10 / 0.007


@pytest.mark.parametrize("slower", [2, 5])
def test_lost_capacity_is_noticed_and_so_is_what_comes_back(slower):
    subject, behind = Admission(10_000), Behind(0.004)
    answered(subject, behind, 300, 10)
    behind.per_request_s *= slower
    answered(subject, behind, 300 * slower, 2, begin_s=20)
    lost = answered(subject, behind, 300 * slower, 10, begin_s=22)
    assert lost["whole"] >= 0.9 * 10 / behind.per_request_s
    behind.per_request_s /= slower
    back = answered(subject, behind, 750, 10, begin_s=40)
    assert back["whole"] >= 0.9 * 10 / behind.per_request_s


def test_below_capacity_nobody_is_refused():
    subject, behind = Admission(10_000), Behind(0.007)
    outcomes = answered(subject, behind, 0.8 / 0.007, 60)
    assert outcomes["refused"] <= 0.01 * outcomes["whole"]


@given(calm_s=st.lists(st.tuples(st.integers(1, FEW), SECONDS)))
def test_calm_and_slow_answers_of_few_never_make_the_door_narrower(calm_s):
    subject = Admission(10_000)
    before = burst(subject)
    for count, took_s in calm_s:
        works = entered(subject, count)
        for work in works:
            subject.leave(*work, took_s)
    assert burst(subject) >= before


@given(count=st.integers(1, 500), took_s=SECONDS)
def test_few_are_let_in_whatever_was_learned(count, took_s):
    subject = Admission(10_000)
    subject.per_request_s = took_s
    assert burst(subject, allowed_s=1e-3) == FEW or took_s < 1e-3 / FEW


@given(n=st.integers(1, 30), fixed_s=st.floats(0, 0.05), per_request_s=st.floats(1e-4, 4e-3))
def test_what_is_learned_lies_between_what_was_seen_and_what_is_possible(n, fixed_s, per_request_s):
    took_s = fixed_s + n * per_request_s
    possible = (AIM * TIME_S - fixed_s) / per_request_s
    subject = Admission(10_000)
    subject.per_request_s = took_s / n  # as it is after many such answers
    if took_s <= AIM * TIME_S:
        assert n - 1e-6 <= AIM * TIME_S / subject.per_request_s <= possible * (1 + 1e-6)


def test_the_estimate_settles_at_what_answers_take_where_many_are_at_work():
    assert taught(20, 0.14).per_request_s == pytest.approx(0.007)
    assert taught(5, 0.2).per_request_s == START_S  # few, and slow
    assert taught(5, 0.01).per_request_s == pytest.approx(0.002)  # few, and fast


def test_an_answer_that_was_given_up_by_its_client_tells_nothing():
    subject = Admission(100)
    for work in entered(subject, 30):
        subject.leave(*work, None)
    assert subject.per_request_s == START_S
    assert subject.at_work == 0


def test_a_shorter_deadline_is_refused_earlier():
    subject = Admission(100)
    subject.per_request_s = 0.0049
    assert burst(subject, 0.25) == 35
    assert burst(subject, 0.1) == 14


def test_a_refusal_tells_the_arithmetic_and_when_to_come_again():
    subject = Admission(100)
    subject.per_request_s = 0.0049
    entered(subject, 35)
    words = r"35 requests at work \+ 1, 4\.9 ms each, take 176 ms; 70% of the 250 ms left are too"
    with pytest.raises(Overloaded, match=words) as refused:
        subject.enter(TIME_S)
    assert refused.value.retry_s == pytest.approx(0.1764)
    subject = Admission(3)
    entered(subject, 3)
    with pytest.raises(Overloaded, match=r"3 requests are at work, at most 3 \(router.max_in_fl"):
        subject.enter(TIME_S)
