"""Reading Prometheus text: values, histograms and the quantiles taken from them."""

from __future__ import annotations

import itertools
import math
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest, start_http_server
from prometheus_client import Histogram as PrometheusHistogram

from load_tests.demo.metrics import Histogram, Metrics, scrape

EDGES = (0.01, 0.1, 1.0)


def scraped(observations: list[float]) -> Metrics:
    registry = CollectorRegistry()
    events = Counter("events", "help", ["outcome"], registry=registry)
    events.labels("applied").inc(3)
    seconds = PrometheusHistogram(
        "stage_seconds", "help", ["stage"], buckets=EDGES, registry=registry
    )
    for observation in observations:
        seconds.labels("rank").observe(observation)
    return Metrics(generate_latest(registry).decode())


def histogram(observations: list[float]) -> Histogram:
    found = scraped(observations).histogram("stage_seconds", stage="rank")
    assert found is not None
    return found


def test_values_are_found_by_name_and_labels_and_are_zero_before_they_exist() -> None:
    metrics = scraped([])
    assert metrics.value("events_total", outcome="applied") == 3
    assert metrics.value("events_total", outcome="invalid") == 0
    assert metrics.histogram("stage_seconds", stage="hydrate") is None


observed = st.lists(st.floats(0.0001, 0.99), min_size=1, max_size=50)


@given(observed, st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    true = sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]
    bounds = (0.0, *EDGES)
    low, high = next((a, b) for a, b in itertools.pairwise(bounds) if a < true <= b)
    assert low <= histogram(values).quantile(q) <= high


def test_beyond_the_last_edge_that_edge_is_given() -> None:
    assert histogram([5.0, 7.0]).quantile(0.5) == EDGES[-1]


def test_without_observations_there_is_no_quantile() -> None:
    assert math.isnan(Histogram((0.1, math.inf), (0.0, 0.0)).quantile(0.5))


@given(observed, observed)
def test_since_leaves_what_came_later(before: list[float], later: list[float]) -> None:
    whole, first = histogram(before + later), histogram(before)
    assert whole.since(first) == histogram(later)


def test_a_process_started_anew_counts_from_zero() -> None:
    fresh = histogram([0.5])
    assert fresh.since(histogram([0.5, 0.5])) == fresh
    assert fresh.quantile(0.5) == pytest.approx(0.55)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"no http\r\n\r\n", id="something else"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", id="half of it"),
    ],
)
def test_a_process_that_ends_in_mid_answer_has_no_metrics(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve_one() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        serving = threading.Thread(target=serve_one)
        serving.start()
        assert scrape(f"127.0.0.1:{server.getsockname()[1]}") is None
        serving.join()


def test_where_nobody_listens_there_are_no_metrics() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert scrape(f"127.0.0.1:{nobody.getsockname()[1]}") is None


def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    registry = CollectorRegistry()
    Counter("events", "help", registry=registry).inc(2)
    server, serving = start_http_server(0, addr="127.0.0.1", registry=registry)
    found = scrape(f"127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    serving.join()
    assert found is not None
    assert found.value("events_total") == 2
