"""Metrics are told by whoever owns them."""

from __future__ import annotations

import subprocess
import sys

from prometheus_client import CollectorRegistry, generate_latest

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
