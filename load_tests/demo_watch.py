"""Keeps the demo's View up to date with what the running services say of themselves."""

from __future__ import annotations

import time

from load_tests.demo_checks import Evidence
from load_tests.demo_metrics import Histogram, Metrics, scrape
from load_tests.demo_table import View
from services import installation
from services.common.settings import Settings
from services.common.supervisor import Supervisor
from services.router.metrics import STAGES


class Watch:
    """Keeps a View up to date: scrapes the services' metrics and reads the joiner's numbers."""

    def __init__(self, settings: Settings, view: View, processes: Supervisor) -> None:
        self._settings = settings
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
        view.restarts = self._processes.restarts
        view.seconds = time.monotonic() - self._began
        self._recent = [*self._recent[-5:], (view.seconds, view.tally.requests)]
        (then, before), (now_s, requests) = self._recent[0], self._recent[-1]
        view.per_second = (requests - before) / max(now_s - then, 0.1)

    def settled(self) -> bool:
        """Whether both workers have caught up with everything that was acknowledged."""
        view = self.view
        if view.joined is None or view.applied < view.tally.events:
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
        return Evidence(tally, self.view.joined, applied, duplicate, invalid, others, versions)


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
