"""Metrics are told by whoever owns them; logging stops nobody, whatever becomes of the lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest

from services.common import telemetry
from services.common.telemetry import OwnedGauge

LIST_GAUGES = """
import importlib, pkgutil
import services, services.cli
from prometheus_client import REGISTRY

for module in pkgutil.walk_packages(services.__path__, "services."):
    importlib.import_module(module.name)
for metric in REGISTRY.collect():
    if metric.name.startswith("tandem_") and metric.type == "gauge":
        print(*(sample.name for sample in metric.samples), sep="\\n")
"""


def test_no_gauge_is_exported_before_there_is_an_owner() -> None:
    """Every process imports the modules of others: what these would say at 0 may page somebody."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_GAUGES], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_an_owned_gauge_has_no_series_until_it_is_set_to_whatever_value() -> None:
    registry = CollectorRegistry()
    gauge = OwnedGauge("lag", "How far.", registry=registry)
    assert generate_latest(registry) == b""
    gauge.set(0)
    assert registry.get_sample_value("lag") == 0
    asked = OwnedGauge("asked", "How far.", registry=registry)
    asked.set_function(lambda: 2.0)
    assert registry.get_sample_value("asked") == 2


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_line_that_a_full_disk_refuses_is_counted_and_stops_nobody() -> None:
    lost = telemetry.LOST_LINES._value.get()
    with Path("/dev/full").open("a", buffering=1) as full:
        telemetry.configure_logging("info", "json", full)
        structlog.get_logger().info("happened")
        assert telemetry.LOST_LINES._value.get() > lost
        with pytest.raises(OSError, match="No space left"):
            full.close()  # what it still holds is refused, too


def test_processes_that_share_a_log_append_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "replicas.log"
    file.write_text("before\n")
    for _ in range(2):
        with file.open("a", buffering=1) as log:
            telemetry.configure_logging("info", "json", log)
            structlog.get_logger().info("happened", model="m1")
    first, *events = file.read_text().splitlines()
    assert first == "before"
    assert [json.loads(e)["model"] for e in events] == ["m1", "m1"]
