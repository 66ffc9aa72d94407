"""What an answer is worth to the curve of overload."""

from __future__ import annotations

from collections import Counter

from load_tests.serving.bench_overload import worth


def test_outcomes_are_counted_by_what_they_were_worth() -> None:
    outcomes = {
        "OK": 5,
        "unranked": 2,
        "popular_fallback unranked": 1,
        "RESOURCE_EXHAUSTED": 7,
        "DEADLINE_EXCEEDED": 4,
        "UNAVAILABLE": 3,
        "CANCELLED": 1,
    }
    assert worth(Counter(outcomes)) == {
        "whole": 5,
        "degraded": 3,
        "refused": 7,
        "late": 4,
        "failed": 4,
    }
