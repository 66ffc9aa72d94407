"""Counters and histograms of the request path: as prometheus_client's, at a fraction of their cost.

A histogram of prometheus_client takes two locks and a linear search per observation, and a request
makes a dozen. Those here take no lock because one thread writes (the event loop) and others only
read: a scrape may miss the request of this moment, never an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

FOLD = 256

Series = TypeVar("Series", "LoopCounter", "LoopHistogram")


class LoopCounter:
    """One series; add to `value` from one thread only."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class LoopHistogram:
    """One series; `observe` from one thread only, `snapshot` from any.

    Values wait in a list and are counted FOLD at a time, at a fraction of the cost.
    """

    __slots__ = ("_edges", "_folded", "_waiting")

    def __init__(self, edges: tuple[float, ...]) -> None:
        """`edges`: ascending upper bounds, inclusive; the count above the last is kept too."""
        self._edges = np.array(edges)
        self._waiting: list[float] = []
        # One reference to what belongs together, so that a reader never sees a value twice or not.
        self._folded = ([0] * (len(edges) + 1), 0.0, self._waiting)

    def observe(self, value: float) -> None:
        waiting = self._waiting
        waiting.append(value)
        if len(waiting) == FOLD:
            self._waiting = []
            self._folded = (*self.snapshot(), self._waiting)

    def snapshot(self) -> tuple[list[int], float]:
        """Counts per bucket, the last above all edges, and the sum of all values."""
        counts, total, waiting = self._folded
        waiting = waiting.copy()
        if waiting:
            places = self._edges.searchsorted(waiting)
            counts = (np.bincount(places, minlength=len(counts)) + counts).tolist()
        for value in waiting:  # one by one, in their order: as prometheus_client adds them
            total += value
        return counts, total


class _Family(Collector, Generic[Series]):
    """The series of one metric by label values, each made on its first use."""

    _new: Callable[[], Series]

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._name, self._help, self._labels = name, help_text, tuple(labels)
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The series of these label values, given in the order of the metric's labels."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {self._labels}, not {values}")
            series = self._series.setdefault(values, self._new())
        return series


class LoopCounters(_Family[LoopCounter]):
    """A counter; its name ends in _total."""

    _new = LoopCounter

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, series in list(self._series.items()):
            family.add_metric(values, series.value)
        yield family


class LoopHistograms(_Family[LoopHistogram]):
    """A histogram with the same buckets in every series."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._bounds = [floatToGoString(edge) for edge in (*buckets, float("inf"))]
        self._new = partial(LoopHistogram, tuple(buckets))
        super().__init__(name, help_text, labels, registry)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for values, series in list(self._series.items()):
            at_most, buckets = 0, []
            counts, total = series.snapshot()
            for bound, count in zip(self._bounds, counts, strict=True):
                at_most += count
                buckets.append((bound, at_most))
            family.add_metric(values, buckets, total)
        yield family
