"""What a worker does that is behind the log, or cannot measure an experiment."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.event_log.interface import Lag
from services.event_log.topics import FEEDBACK
from services.experiments.act import standing
from services.experiments.act.worker import MOST_LAG_S
from services.experiments.declare.config import Experiment
from services.experiments.measure.results import Measured
from tests.integration.acting.installation import (
    EXPERIMENTS_FILE,
    HARMLESS,
    RAMPED_FILE,
    T0_MS,
    Start,
    harmed,
)


def test_an_experiment_that_cannot_be_measured_leaves_the_others_guarded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = EXPERIMENTS_FILE[EXPERIMENTS_FILE.index("  - name: value") :]
    first = second.replace("value", "first").replace("mix\n", "broken\n")
    first = first.replace("rerank.diversity", "rerank.like_weight")
    installed = start(EXPERIMENTS_FILE.replace(second, first + second))
    measured = standing.measured

    def breaks(settled: Any, experiment: Experiment, *rest: Any) -> Measured:
        if experiment.name == "broken":
            raise ZeroDivisionError("no such outcome was thought of")
        return measured(settled, experiment, *rest)

    monkeypatch.setattr(standing, "measured", breaks)
    harmed(installed)
    content = installed.round()
    assert set(content["experiments"]) == {"mix"}
    assert [(c.experiment, c.arm) for c in installed.audited()] == [("mix", "mixed")]
    unmeasured = partial(REGISTRY.get_sample_value, "tandem_experiments_unmeasured")
    assert unmeasured({"experiment": "broken"}) == 1
    assert unmeasured({"experiment": "mix"}) == 0
    monkeypatch.undo()
    assert set(installed.round()["experiments"]) == {"broken", "mix"}
    assert unmeasured({"experiment": "broken"}) == 0


def test_no_series_is_missing_while_a_round_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alert that waits for minutes begins anew where a scrape finds nothing."""
    installed = start(RAMPED_FILE)
    harmed(installed, range(1_000))  # of whom the ramp lets in 40 %
    installed.round()

    def series() -> set[tuple[str, ...]]:
        return {
            (sample.name, *sample.labels.values())
            for metric in REGISTRY.collect()
            if metric.name.startswith("tandem_experiments_") and metric.type == "gauge"
            for sample in metric.samples
        }

    before = series()
    assert ("tandem_experiments_guardrail_breached", "mix", "mixed", "degraded_share") in before
    assert ("tandem_experiments_arm_stopped", "mix", "mixed") in before
    seen = []
    measured = standing.measured

    def scraped(*arguments: Any) -> Measured:
        seen.append(series())
        return measured(*arguments)

    monkeypatch.setattr(standing, "measured", scraped)
    installed.round()
    assert seen
    assert all(each >= before for each in seen)
    # What is gone from the file goes from the metrics when the round ends.
    installed.file.write_text("version: 1\nlayers: []\n")
    installed.round()
    assert not any("mix" in labels for _, *labels in series())


def test_a_worker_says_so_when_routers_serve_other_parameters_than_its_file(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    installed.visits(range(100), HARMLESS)
    installed.round()
    unmeasured = partial(
        REGISTRY.get_sample_value, "tandem_experiments_unmeasured", {"experiment": "mix"}
    )
    assert unmeasured() == 0
    # An edit that a running router refuses, and a worker that starts with it.
    installed.file.write_text(EXPERIMENTS_FILE.replace("0.5}", "0.9}"))
    installed.experiments.reload_if_changed()
    installed.round()
    assert unmeasured() == 0  # it goes on with what the router has
    installed.worker = installed.new_worker()
    installed.visits(range(100, 200), HARMLESS)
    installed.round()
    assert unmeasured() == 1
    installed.file.write_text(EXPERIMENTS_FILE)
    installed.worker = installed.new_worker()
    installed.round()
    assert unmeasured() == 0


def test_a_worker_that_may_not_act_or_is_behind_only_reports(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.worker = installed.new_worker(act=False)
    content = installed.round()
    assert content["experiments"]["mix"]["changes"] == []
    assert installed.done() == []
    assert REGISTRY.get_sample_value("tandem_experiments_acting") == 0

    installed.worker = installed.new_worker()
    lags = installed.reader.lags
    installed.reader.read_all()
    installed.worker.round(T0_MS)  # has seen the end, when nothing was final
    installed.reader.lags = lambda: (
        lags()
        | {  # type: ignore[method-assign]
            FEEDBACK: Lag(9, MOST_LAG_S + 1)
        }
    )
    installed.worker.round(installed.now_ms)
    assert installed.done() == []
    installed.reader.lags = lags  # type: ignore[method-assign]
    installed.worker.round(installed.now_ms)
    assert installed.done() == ["ARM_STOPPED"]


def test_a_worker_that_starts_acts_when_it_is_near_the_end_of_a_log_that_goes_on(
    start: Start,
) -> None:
    """Under traffic there is always something that it has not read yet."""
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.reader.read_all()
    installed.visits(range(400, 410), HARMLESS)
    installed.pass_s(MOST_LAG_S + 1)
    content = installed.worker.round(installed.now_ms)
    assert (content["caught_up"], installed.done()) == (False, [])
    installed.reader.read_all()
    installed.visits(range(400, 410), HARMLESS)
    installed.pass_s(1)
    worker = installed.new_worker()
    assert not installed.reader.caught_up()
    content = worker.round(installed.now_ms)
    assert (content["caught_up"], installed.done()) == (True, ["ARM_STOPPED"])


def test_a_worker_that_starts_reads_all_changes_before_its_first_round(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.round()
    for _ in range(2):
        assert not installed.command("resume", "mix", "--arm", "mixed", "--reason", "r").exit_code
        assert not installed.command("stop", "mix", "--arm", "mixed", "--reason", "s").exit_code
    monkeypatch.setattr("services.experiments.changes.log.POLL_RECORDS", 1)
    installed.end()
    installed.begin()
    installed.reader.read_all()
    content = installed.worker.round(installed.now_ms)
    assert content["caught_up"]
    assert len(content["experiments"]["mix"]["changes"]) == 5


def test_a_file_that_routers_refuse_is_refused_by_the_worker(start: Start) -> None:
    """By other weights than those that assign, every sample ratio would be broken."""
    installed = start(EXPERIMENTS_FILE)
    installed.visits(range(400), HARMLESS)
    assert installed.round()["caught_up"]
    moving = EXPERIMENTS_FILE.replace("control, weight: 50", "control, weight: 80")
    installed.file.write_text(moving.replace("mixed, weight: 50", "mixed, weight: 20"))
    installed.experiments.reload_if_changed()
    installed.pass_s(1)
    installed.visits(range(400, 800), HARMLESS)
    installed.round()
    assert installed.done() == []
