"""What the running services say of themselves on /metrics, for the demo's table and checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families

SCRAPE_TIMEOUT_S = 2.0
_open = build_opener(ProxyHandler({})).open  # the parts of an installation are met directly


@dataclass(frozen=True)
class Histogram:
    """Cumulative counts at ascending upper edges, the last of which is infinite."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]

    def since(self, earlier: Histogram | None) -> Histogram:
        """What was observed after `earlier`; all of it when that is missing or the process anew."""
        if earlier is None or earlier.edges != self.edges or earlier.counts[-1] > self.counts[-1]:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Histogram(self.edges, counts)

    def quantile(self, q: float) -> float:
        """The q-quantile, interpolated within its bucket; NaN without observations.

        In the unbounded last bucket nothing is known but its lower edge, which is given.
        """
        total = self.counts[-1] if self.counts else 0.0
        if not total:
            return math.nan
        low = below = 0.0
        for edge, count in zip(self.edges, self.counts, strict=True):
            if count >= q * total:
                if math.isinf(edge):
                    return low
                return low + (edge - low) * (q * total - below) / (count - below)
            low, below = edge, count
        return low


class Metrics:
    """One scrape of one process."""

    def __init__(self, text: str) -> None:
        self._samples = [s for f in text_string_to_metric_families(text) for s in f.samples]

    def value(self, name: str, **labels: str) -> float:
        """A sample's value; 0 when the process has not made it yet."""
        found = (s.value for s in self._samples if s.name == name and s.labels == labels)
        return next(found, 0.0)

    def histogram(self, name: str, **labels: str) -> Histogram | None:
        buckets = sorted(
            (float(s.labels["le"]), s.value)
            for s in self._samples
            if s.name == f"{name}_bucket" and s.labels == labels | {"le": s.labels["le"]}
        )
        if not buckets:
            return None
        edges, counts = zip(*buckets, strict=True)
        return Histogram(edges, counts)


def scrape(address: str) -> Metrics | None:
    """The metrics at host:port; None while nobody answers there (a process being restarted)."""
    try:
        with _open(f"http://{address}/metrics", timeout=SCRAPE_TIMEOUT_S) as response:
            return Metrics(response.read().decode())
    except (OSError, HTTPException):  # nobody there, or one that ends in mid-answer
        return None
