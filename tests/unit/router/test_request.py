"""Copies of what stages hand on: a field that is added must not get lost in them."""

from __future__ import annotations

import numpy as np

from services.router.request import Candidates

ALL = Candidates(
    rows=np.array([5, 6, 7]),
    keys=np.array([50, 60, 70], np.uint64),
    scores=np.array([0.9, 0.5, 0.1], np.float32),
    source=np.array([0, 1, 0], np.uint8),
    interest=np.array([2, 0, 1], np.uint8),
    sources=("a", "b"),
    screened=True,
)


def test_the_sample_has_another_value_than_the_default_in_each_field() -> None:
    assert all(getattr(ALL, name) != value for name, value in Candidates._field_defaults.items())


def test_candidates_that_are_all_taken_are_as_before_in_each_field() -> None:
    for name, before, after in zip(ALL._fields, ALL, ALL.take(np.arange(3)), strict=True):
        assert np.array_equal(before, after), name


def test_of_candidates_one_after_the_other_each_stays_what_it_was() -> None:
    others = ALL._replace(sources=("c", "b"))
    both = ALL.then(others)
    for one, at in ((ALL, np.arange(3)), (others, np.arange(3, 6))):
        part = both.take(at)
        found = [both.sources[i] for i in part.source]
        assert found == [one.sources[i] for i in one.source]
        for name in ("rows", "keys", "scores", "interest"):
            assert np.array_equal(getattr(part, name), getattr(one, name)), name
    assert not both.screened  # twice the same item may be in it
