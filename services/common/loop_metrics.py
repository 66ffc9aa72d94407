"""Counters and histograms of the request path: as prometheus_client's, at a fraction of their cost.

A histogram of prometheus_client takes two locks and a linear search per observation, and a request
makes a dozen. Those here take no lock because one thread writes (the event loop) and others only
read: a scrape may miss the request of this moment, never an earlier one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

Series = TypeVar("Series", "LoopCounter", "LoopHistogram")


class LoopCounter:
    """One series; add to `value` from one thread only."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class LoopHistogram:
    """One series; `observe` from one thread only."""

    __slots__ = ("_edges", "counts", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        """`edges`: ascending upper bounds, inclusive; the count above the last is kept too."""
        self._edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._edges, value)] += 1
        self.total += value


class _Family(Collector, Generic[Series]):
    """The series of one metric by label values, each made on its first use."""

    def __init__(
        self,
        new: Callable[[], Series],
        name: str,
        help_text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self._new: Callable[[], Series] = new
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

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        super().__init__(LoopCounter, name, help_text, labels, registry)

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
        edges = tuple(buckets)
        self._bounds = [floatToGoString(edge) for edge in (*edges, float("inf"))]
        super().__init__(lambda: LoopHistogram(edges), name, help_text, labels, registry)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for values, series in list(self._series.items()):
            at_most, buckets = 0, []
            for bound, count in zip(self._bounds, series.counts, strict=True):
                at_most += count
                buckets.append((bound, at_most))
            family.add_metric(values, buckets, series.total)
        yield family
