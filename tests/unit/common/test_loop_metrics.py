"""The lock-free metrics say on /metrics what prometheus_client's own would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from services.common.loop_metrics import LoopCounters, LoopHistograms

BUCKETS = (0.001, 0.01, 0.1, 1.0)
VALUES = st.one_of(st.sampled_from(BUCKETS), st.floats(0, 5, allow_nan=False))


def exposed(registry: CollectorRegistry) -> list[str]:
    """The text that Prometheus reads, in no order."""
    return sorted(generate_latest(registry).decode().splitlines())


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), VALUES)))
def test_a_histogram_reads_as_prometheus_clients(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = LoopHistograms("tandem_x_seconds", "What it decides.", ["stage"], BUCKETS, ours)
    reference = Histogram(
        "tandem_x_seconds", "What it decides.", ["stage"], buckets=BUCKETS, registry=theirs
    )
    for stage, value in observed:
        mine.labels(stage).observe(value)
        reference.labels(stage).observe(value)
    assert exposed(ours) == [line for line in exposed(theirs) if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["x", "y"]))))
def test_a_counter_reads_as_prometheus_clients(counted: list[tuple[str, str]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = LoopCounters("tandem_x_total", "What it decides.", ["arm", "kind"], ours)
    reference = Counter("tandem_x_total", "What it decides.", ["arm", "kind"], registry=theirs)
    for values in counted:
        mine.labels(*values).value += 1
        reference.labels(*values).inc()
    assert exposed(ours) == [line for line in exposed(theirs) if "_created" not in line]


def test_a_series_needs_a_value_for_every_label() -> None:
    counters = LoopCounters("tandem_x_total", "", ["arm", "kind"], CollectorRegistry())
    with pytest.raises(ValueError, match="arm"):
        counters.labels("a")
