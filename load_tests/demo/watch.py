"""Keeps the demo's View up to date with what the running services say of themselves."""

from __future__ import annotations

import time

from load_tests.demo.checks import Evidence, counted_arms, exposed_units
from load_tests.demo.metrics import Histogram, Metrics, scrape
from load_tests.demo.table import View
from services import installation
from services.common.processes.supervisor import Supervisor
from services.common.settings import Settings
from services.experiments.act.snapshot import SNAPSHOT, fresh
from services.experiments.declare.config import ExperimentsConfig
from services.router.metrics import STAGES


class Watch:
    """Keeps a View up to date: scrapes the services' metrics and reads the workers' numbers."""

    def __init__(
        self,
        settings: Settings,
        view: View,
        processes: Supervisor,
        experiments: ExperimentsConfig,
    ) -> None:
        self._settings = settings
        self._experiments = experiments
        self.view = view
        self._processes = processes
        self._began = time.monotonic()
        self._first: Metrics | None = None  # of the router
        self._router: Metrics | None = None
        self._recent = [(0.0, 0)]  # (seconds, requests) of the last few looks
        self._updater: Metrics | None = None

    def look(self) -> None:
        """Take in what the services say now. Blocks for the scrapes: not for the event loop."""
        view = self.view
        metrics = installation.metrics_endpoints(self._settings)
        for address in metrics["router"]:
            if (now := scrape(address)) is not None:
                self._first, self._router = self._first or now, now
                view.stages = {stage: _since(now, self._first, stage) for stage in STAGES}
        for address in metrics["updater"]:
            if (now := scrape(address)) is not None:
                self._updater = now
                view.applied = now.value("tandem_updater_events_total", outcome="applied")
                view.updater_lag_events = now.value("tandem_updater_lag_events")
                view.feedback_delay = now.histogram("tandem_updater_feedback_delay_seconds")
        view.joined = installation.joined_numbers(self._settings)
        self._look_at_experiments()
        view.restarts = self._processes.restarts
        view.seconds = time.monotonic() - self._began
        self._recent = [*self._recent[-5:], (view.seconds, view.tally.requests)]
        (then, before), (now_s, requests) = self._recent[0], self._recent[-1]
        view.per_second = (requests - before) / max(now_s - then, 0.1)

    def _look_at_experiments(self) -> None:
        """What the worker has last measured of each experiment and done to it."""
        source, now_ms = self._settings.event_log.url, time.time_ns() / 1e6
        for _, experiment in self._experiments.experiments():
            found = fresh(self._settings.run_dir / SNAPSHOT, experiment, source, now_ms)
            if found is not None:
                self.view.experiments[experiment.name] = found

    def settled(self) -> bool:
        """Whether all workers have caught up with everything that was acknowledged."""
        view = self.view
        if view.joined is None or view.applied < view.tally.events:
            return False
        for key in counted_arms(self._experiments):
            found = view.experiments.get(key.experiment)
            units = view.tally.arms[key].units if key in view.tally.arms else 0
            if found is None or (
                exposed_units(found.standing, key.arm) < units and not found.standing.state.stopped
            ):
                return False
        joined = sum(arm["requests"] for arm in view.joined["arms"])
        counted = sum(counts.requests for counts in view.tally.arms.values())
        return bool(view.joined["caught_up"]) and joined >= counted

    def evidence(self) -> Evidence:
        """What the checks need, as of now."""
        self.look()
        updater = self._updater or Metrics("")
        applied, duplicate, invalid = (
            updater.value("tandem_updater_events_total", outcome=outcome)
            for outcome in ("applied", "duplicate", "invalid")
        )
        tally = self.view.tally
        own = tally.requests + tally.feedback_calls.total()
        others = max(0, int(_calls(self._router or Metrics(""))) - own)
        versions = installation.published_versions(self._settings)
        return Evidence(
            tally,
            self.view.joined,
            applied,
            duplicate,
            invalid,
            others,
            versions,
            self.view.seconds,
            {name: found.standing for name, found in self.view.experiments.items()},
        )


def _calls(router: Metrics) -> float:
    """Calls that the router has answered with OK since it was started."""
    return sum(
        router.value("tandem_rpc_requests_total", service="recommender", method=m, status="OK")
        for m in ("Recommend", "RecordFeedback")
    )


def _since(now: Metrics, first: Metrics, stage: str) -> Histogram | None:
    histogram = now.histogram("tandem_router_stage_seconds", stage=stage)
    earlier = first.histogram("tandem_router_stage_seconds", stage=stage)
    return histogram and histogram.since(earlier)
