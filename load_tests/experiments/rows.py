"""A million units of an experiment as rows of a fold, and the report of them: time and memory.

`python -m load_tests.experiments.rows` prints its figures as JSON. A process of its own, because
the peak memory of a process never falls (bench_experiments starts it).
"""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.tandem.v1 import records_pb2
from services.experiments.declare.config import Arm, Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Metric, MetricKind, Plan
from services.experiments.measure.fold import BEFORE, DECISION, EVENT, RecordedExposure, Settled
from services.experiments.measure.measure import measured
from services.experiments.measure.results import DAY_MS
from services.experiments.measure.sorted_rows import rows_of
from services.experiments.report.build import build_report
from services.experiments.report.findings import Coverage

SEED = 20_26
UNITS = 1_000_000
DECISIONS, EVENTS = 1_500_000, 3_000_000
DAYS = 14
START_MS = 20_000 * DAY_MS
AS_OF_MS = START_MS + (DAYS + 3) * DAY_MS


def main() -> None:
    print(json.dumps(figures()))


def figures() -> dict[str, Any]:
    """CPU seconds, wall-clock seconds and MiB; the rows themselves are made before the clock."""
    settled, own = rows(np.random.default_rng(SEED)), experiment()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, cpu = time.perf_counter(), [time.process_time()]
    rows_of(settled.events["request"], settled.decisions["request"])  # as Fold.settled does
    cpu.append(time.process_time())
    result = measured(settled, own, AS_OF_MS)
    cpu.append(time.process_time())
    said = build_report("layer", own, result, AS_OF_MS, Coverage())
    cpu.append(time.process_time())
    wall_s = time.perf_counter() - started
    match_s, measure_s, report_s = np.diff(cpu).round(2).tolist()
    assert sum(arm.final for arm in said.arms) > 0.7 * UNITS
    return {
        "decisions": len(settled.decisions),
        "events": len(settled.events),
        "metrics": len(own.plan.metrics),
        "cells": len(result.cells),
        "match_cpu_s": match_s,
        "measure_cpu_s": measure_s,
        "report_cpu_s": report_s,
        "wall_s": round(wall_s, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_rss_before_mib": round(held),
        "rows_mib": round((settled.decisions.nbytes + settled.events.nbytes) / 2**20),
    }


def experiment() -> Experiment:
    """Two arms, 20 metrics of every kind and source, with windows of their own."""
    hour = 3600.0

    def windows(name: str, kind: MetricKind, of: str, *hours: float) -> list[Metric]:
        return [Metric(f"{name}{h:g}h", kind, of, "higher", window_s=h * hour) for h in hours]

    goals = [
        Metric("click_rate", "ratio", "click", "higher", per="impression", window_s=hour / 2),
        *windows("clicked", "binary", "click", 1, 2, 6),
        *windows("clicks", "mean", "click", 1, 2, 6),
        *windows("liked", "binary", "like", 1, 6),
        *windows("likes", "mean", "like", 1, 6),
        Metric("like_rate", "ratio", "like", "higher", per="click", window_s=hour),
        Metric("seen", "mean", "impression", "higher", window_s=hour),
        Metric("seen_per_request", "ratio", "impression", "higher", per="request", window_s=hour),
        Metric("requests", "mean", "request", "higher"),
    ]
    guardrails = [
        Metric("latency_p50", "quantile", "latency", "lower", quantile=0.5),
        Metric("latency_p99", "quantile", "latency", "lower", quantile=0.99),
        Metric("latency", "ratio", "latency", "lower", per="request"),
        Metric("degraded_share", "ratio", "degraded", "lower", per="request"),
        Metric("error_share", "ratio", "error", "lower", per="request"),
    ]
    plan = Plan(
        Goal(goals[0], 0.02),
        tuple(Goal(metric, 0.02) for metric in goals[1:]),
        tuple(Guardrail(metric, 0.01, absolute=True, observe_s=60) for metric in guardrails),
        planned_units=UNITS,
    )
    arms = (Arm("control", 0, 5000, 10_000, {}), Arm("treatment", 5000, 10_000, 10_000, {}))
    return Experiment("e", "e", "user", (0, 10_000), arms, {}, True, plan=plan)


def rows(rng: np.random.Generator) -> Settled:
    """Every unit has a decision, the other half million are of some of them; each has a segment,
    and a history that its clicks depend on."""
    ids = _distinct_ids(rng, UNITS)
    user = np.concatenate([np.arange(UNITS), rng.integers(0, UNITS, DECISIONS - UNITS)])
    start_ms = START_MS + rng.integers(0, DAYS * DAY_MS, UNITS)
    decisions = np.zeros(DECISIONS, DECISION)
    decisions["request"] = np.sort(_distinct_ids(rng, DECISIONS))
    user = rng.permutation(user)
    decisions["user"] = ids[user]
    decisions["time_ms"] = start_ms[user] + rng.integers(0, 2 * DAY_MS, DECISIONS)
    decisions["arms"] = user % 2
    decisions["segments"] = user % 7 // 2
    decisions["latency"] = rng.lognormal(3, 0.5, DECISIONS) * 10**6
    decisions["degraded"] = rng.random(DECISIONS) < 0.01
    decisions["unanswered"] = rng.random(DECISIONS) < 0.001
    known = rng.lognormal(2, 1.5, UNITS)
    before = {}
    for event, share in ((records_pb2.IMPRESSION, 1.0), (records_pb2.CLICK, 0.1)):
        before[int(event)] = np.zeros(DECISIONS, BEFORE)
        before[int(event)]["request"] = decisions["request"]
        before[int(event)]["number"] = (known * share)[user]
    events = np.zeros(EVENTS, EVENT)
    of = rng.integers(0, DECISIONS, EVENTS)
    events["event"] = np.sort(_distinct_ids(rng, EVENTS))
    events["request"] = decisions["request"][of]
    events["time_ms"] = decisions["time_ms"][of] + rng.exponential(1_000_000, EVENTS)
    events["type"] = rng.choice(
        [records_pb2.IMPRESSION, records_pb2.CLICK, records_pb2.LIKE], EVENTS, p=[0.7, 0.2, 0.1]
    )
    return Settled(
        decisions=decisions,
        events=events,
        decision_of=rows_of(events["request"], decisions["request"]),
        combinations={
            0: (RecordedExposure("e", "control"),),
            1: (RecordedExposure("e", "treatment"),),
        },
        segments={0: (), 1: ("new",), 2: ("heavy",), 3: ("new", "mobile")},
        before=before,
    )


def _distinct_ids(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    return rng.permutation(np.unique(rng.integers(1, 1 << 62, count + 1000))[:count])


if __name__ == "__main__":
    main()
