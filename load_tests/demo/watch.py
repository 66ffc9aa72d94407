"""Keeps the demo's View up to date with what the running services say of themselves."""

from __future__ import annotations

import time

from load_tests.demo.checks import Evidence, unmeasured, worker_counts
from load_tests.demo.metrics import Histogram, Metrics, scrape
from load_tests.demo.table import View
from models import artifact
from services import installation
from services.common.processes.supervisor import Supervisor
from services.common.settings import Settings
from services.event_log import topics
from services.experiments.act.snapshot import SNAPSHOT, fresh_in, read
from services.experiments.act.standing import Standing
from services.experiments.declare.config import ExperimentsConfig
from services.router.metrics import STAGES


class Watch:
    """Keeps a View up to date: scrapes the services' metrics and reads the workers' numbers."""

    def __init__(
        self, settings: Settings, view: View, processes: Supervisor, experiments: ExperimentsConfig
    ) -> None:
        self._settings = settings
        self._experiments = experiments
        self.view = view
        self._processes = processes
        self._began = time.monotonic()
        self._first: Metrics | None = None  # of the router
        self._router = self._updater = Metrics("")
        self._recent = [(0.0, 0)]  # (seconds, requests) of the last few looks

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
        for address in metrics["experiments"]:
            if (now := scrape(address)) is not None:
                view.worker_lag_events = sum(
                    now.value("tandem_experiments_lag_events", topic=topic)
                    for topic in (topics.DECISIONS, topics.FEEDBACK)
                )
        self._look_at_experiments()
        view.restarts = self._processes.restarts
        view.seconds = time.monotonic() - self._began
        self._recent = [*self._recent[-5:], (view.seconds, view.tally.requests)]
        (then, before), (now_s, requests) = self._recent[0], self._recent[-1]
        view.per_second = (requests - before) / max(now_s - then, 0.1)

    def _look_at_experiments(self) -> None:
        """What the worker has last measured of each experiment and done to it."""
        source, now_ms = self._settings.event_log.url, time.time_ns() / 1e6
        content = read(self._settings.run_dir / SNAPSHOT)
        for _, experiment in self._experiments.experiments():
            found = fresh_in(content, experiment, source, now_ms)
            if found is not None:
                self.view.experiments[experiment.name] = found

    def settled(self) -> bool:
        """Whether all workers have caught up with everything that was acknowledged."""
        view, measured = self.view, self._measured()
        theirs = worker_counts(measured, self._experiments)
        return (
            view.applied >= view.tally.events
            and not unmeasured(measured, self._experiments)
            and all(
                theirs.get(key, {}).get(what, 0) >= number
                for key, counts in view.tally.arms.items()
                for what, number in counts.items()
            )
        )

    def _measured(self) -> dict[str, Standing]:
        return {name: found.standing for name, found in self.view.experiments.items()}

    def evidence(self) -> Evidence:
        """What the checks need, as of now."""
        self.look()
        applied, duplicate, invalid = (
            self._updater.value("tandem_updater_events_total", outcome=outcome)
            for outcome in ("applied", "duplicate", "invalid")
        )
        tally = self.view.tally
        own = tally.requests + tally.feedback_calls.total()
        others = max(0, int(_calls(self._router)) - own)
        versions = published_versions(self._settings)
        return Evidence(
            tally=tally,
            applied=applied,
            duplicate=duplicate,
            invalid=invalid,
            others=others,
            versions=versions,
            seconds=self.view.seconds,
            measured=self._measured(),
        )


def published_versions(settings: Settings) -> dict[str, str]:
    """Version -> model, for every published version of the models that the settings name."""
    names = (*settings.candidate_generation.models, *settings.ranking.models)
    return {
        folder.name: name
        for name in names
        for folder in artifact.current(settings.artifacts_dir, name).parent.iterdir()
        if (folder / artifact.READY).is_file()
    }


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
