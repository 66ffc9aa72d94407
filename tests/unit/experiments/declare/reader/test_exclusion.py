"""Which experiments may not run at the same time."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from services.experiments.declare.config import Experiment
from services.experiments.declare.reader.exclusion import shared_buckets


@st.composite
def scheduled(draw: st.DrawFn) -> list[Experiment]:
    """Experiments of a layer with random buckets, times and switches."""
    found = []
    for i in range(draw(st.integers(0, 9))):
        first, end = sorted(draw(st.lists(st.integers(0, 9), min_size=2, max_size=2)))
        start, stop = sorted(draw(st.lists(st.integers(0, 9), min_size=2, max_size=2, unique=True)))
        forever = draw(st.booleans())
        found.append(
            Experiment(
                f"e{i}", f"e{i}", "user", (first, end), (), {}, draw(st.integers(0, 5)) > 0,
                start_ms=-math.inf if forever else start, stop_ms=math.inf if forever else stop,
            )
        )  # fmt: skip
    return found


@settings(max_examples=300)
@given(scheduled())
def test_experiments_that_share_a_bucket_at_some_instant_are_all_found(
    experiments: list[Experiment],
) -> None:
    def share(one: Experiment, other: Experiment) -> bool:
        return (
            one.enabled
            and other.enabled
            and max(one.start_ms, other.start_ms) < min(one.stop_ms, other.stop_ms)
            and max(one.buckets[0], other.buckets[0]) < min(one.buckets[1], other.buckets[1])
        )

    pairs = itertools.combinations(range(len(experiments)), 2)
    assert shared_buckets(experiments) == [
        (j, i) for j, i in pairs if share(experiments[j], experiments[i])
    ]
