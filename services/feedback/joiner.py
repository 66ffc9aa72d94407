"""The joiner: decisions and the feedback on them, joined by request id into numbers per arm.

It reads topics `decisions` and `feedback` and says of each arm how many requests and users it was
shown to and what they did with it; `tandem status`, the demo's table and Prometheus read that.

A feedback event belongs to the decision whose request id it quotes when it happened at or up to the
join window after it, by event time. What comes first does not matter: feedback waits for its
decision. The result is a fold of the retained log that takes each request id once and each user's
event id once, so a restart simply reads both topics again from the beginning, under a consumer
group of its own that commits nothing and is forgotten afterwards.

Limits: the numbers reach back as far as the log is retained; starting takes as long as reading it;
one joiner reads everything. What it remembers lies on disk (join_memory.py), so its memory does not
grow with the traffic. And it forgets: once all that is in the log was read, what is a window and
GRACE_MS older than the newest event is dropped. A message that old which arrives only then counts
as late, where a restart would still join it; and feedback whose decision was dropped counts as
unmatched, where it would be late. By "newest" no time is meant that lies ahead of this machine's
clock (ahead.py): one router whose clock is wrong makes nobody else's messages late.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from prometheus_client import Gauge

from protos.tandem.v1 import records_pb2
from services.common import telemetry
from services.common.channels import joined
from services.common.discovery import Announcement, replica_folder
from services.common.ids import hash_of
from services.common.processes.stopping import stop_on_sigterm
from services.common.processes.waiting import Stopped, wait_for
from services.common.settings import Settings
from services.common.telemetry import OwnedGauge
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Lag, LogUnavailable, LogWentBack
from services.event_log.whole_log import SKEW_MS, WholeLog
from services.feedback.ahead import latest_by_the_clock
from services.feedback.join_memory import JoinMemory

log = structlog.get_logger(__name__)

READER = "joiner"
GRACE_MS = 600_000  # how late a message may arrive, by event time, and still be joined
POLL_S = 0.1
REPORT_EVERY_S = 1.0
BACKOFF_S = 1.0
SNAPSHOT = "joiner.json"

_ARM = ["experiment", "arm"]
ARM_GAUGES = {
    "requests": Gauge(
        "tandem_exposures",
        "Requests answered with this arm in force: arms must stand in their weights' ratio.",
        _ARM,
    ),
    "units": Gauge(
        "tandem_exposed_units",
        "Users, or sessions where the experiment assigns those, that this arm was shown to at"
        " least once: what its rates have a sample of.",
        _ARM,
    ),
    "impressions": Gauge(
        "tandem_arm_impressions", "Items seen from this arm's lists: what rates divide by.", _ARM
    ),
    "clicks": Gauge("tandem_arm_clicks", "Items chosen from this arm's lists.", _ARM),
    "likes": Gauge("tandem_arm_likes", "Items liked from this arm's lists.", _ARM),
    "degraded": Gauge(
        "tandem_arm_degraded_requests",
        "Requests of this arm that a stage failed or came late for: unequal shares make the arms"
        " incomparable.",
        _ARM,
    ),
}
TOTAL_GAUGES = {
    "unmatched": OwnedGauge(
        "tandem_joiner_unmatched_events",
        "Feedback that quotes a request of which no decision came within the window: decisions are"
        " lost, or clients make up request ids.",
    ),
    "late": OwnedGauge(
        "tandem_joiner_late_events",
        "Feedback outside its request's join window, and messages older than what the joiner"
        " remembers: widen feedback.join_window_s if it is many.",
    ),
    "duplicates": OwnedGauge(
        "tandem_joiner_duplicate_events",
        "Deliveries of events and decisions already counted: how much clients and workers retry.",
    ),
    "ahead": OwnedGauge(
        "tandem_joiner_ahead_messages",
        "Decisions and feedback whose time lies ahead of this machine's clock: the clock of a"
        " router or of this machine is wrong. They count, but feedback on such a decision is late.",
    ),
    "undecodable": OwnedGauge(
        "tandem_joiner_undecodable_records", "Records that are no valid message: a broken writer."
    ),
}
LAG_EVENTS = Gauge(
    "tandem_joiner_lag_events",
    "Records not yet read, per topic: how stale the numbers are.",
    ["topic"],
)
MEMORY_BYTES = OwnedGauge(
    "tandem_joiner_memory_bytes",
    "Disk space of what the joiner remembers: some 20 bytes per decision and event of the join"
    " window, and while a start reads it, of the whole retained log: room for that must be there.",
)
LAG_SECONDS = Gauge(
    "tandem_joiner_lag_seconds", "Age of the oldest record not yet read, per topic.", ["topic"]
)


class ArmKey(NamedTuple):
    layer: str
    experiment: str
    arm: str


@dataclass
class ArmCounts:
    """What one arm was shown and what came of it."""

    requests: int = 0
    units: int = 0
    impressions: int = 0
    clicks: int = 0
    likes: int = 0
    degraded: int = 0


_COUNTS: dict[int, str] = {
    records_pb2.IMPRESSION: "impressions",
    records_pb2.CLICK: "clicks",
    records_pb2.LIKE: "likes",
}


@dataclass
class JoinState:
    """The fold. Equal sets of messages give equal numbers, in whatever order and however often each
    is delivered. `advance` changes no arm's numbers as long as no message is older than the
    watermark that went before it (only late and unmatched may change places)."""

    window_ms: int
    skew_ms: int = SKEW_MS
    latest_ms: Callable[[], int] = field(default=latest_by_the_clock, compare=False)
    memory: JoinMemory = field(default_factory=JoinMemory, compare=False)
    arms: dict[ArmKey, ArmCounts] = field(default_factory=dict)
    unmatched: int = 0
    late: int = 0
    newest_ms: int = 0  # of the times that are not ahead
    ahead: int = field(default=0, compare=False)
    # How often was delivered and forgotten is not part of what was decided and done.
    duplicates: int = field(default=0, compare=False)
    watermark_ms: int = field(default=0, compare=False)
    # Arms and combinations of arms have numbers in the memory: their places here.
    _arm_numbers: dict[ArmKey, int] = field(default_factory=dict, compare=False)
    _combinations: list[tuple[ArmKey, ...]] = field(default_factory=list, compare=False)
    _combination_numbers: dict[tuple[ArmKey, ...], int] = field(default_factory=dict, compare=False)

    def on_decision(self, record: records_pb2.DecisionRecord) -> None:
        """Count a decision's exposures, once, and the feedback that was waiting for it.

        A request that ended without an answer was no decision: nobody was shown anything. Nor was
        it an exposure to an arm of whose experiment it read no parameter.
        """
        if record.outcome != records_pb2.ANSWERED:
            return
        request, time_ms = hash_of(record.request_id), record.event_time_ms
        if time_ms < self.watermark_ms:
            if self.memory.decision(request) is None:
                self.late += 1
            else:
                self.duplicates += 1
            return
        counted = [a for a in record.assignments if not (a.overridden or a.unread)]
        arms = tuple([ArmKey(a.layer, a.experiment, a.arm) for a in counted])
        if not self.memory.add_decision(request, time_ms, self._combination_number(arms)):
            self.duplicates += 1
            return
        self._seen(time_ms)
        for arm, assignment in zip(arms, counted, strict=True):
            counts = self._counts(arm)
            counts.requests += 1
            counts.degraded += bool(record.degradations)
            unit = hash_of(_unit_id(record, assignment.unit))
            counts.units += self.memory.add_unit(self._arm_numbers[arm], unit)
        for feedback_ms, event_type in self.memory.take_waiting(request):
            self._attribute(time_ms, arms, feedback_ms, event_type)

    def on_feedback(self, event: records_pb2.FeedbackEvent) -> None:
        """Attribute an event, once, to its decision's arms, or let it wait for the decision."""
        key = hash_of(event.user_id, event.event_id)  # unique per sender, not in the world
        time_ms = event.event_time_ms
        if time_ms < self.watermark_ms:
            # Not remembered any more: whether it was counted cannot be told.
            self.late += 1
            return
        if not self.memory.add_event(key, time_ms):
            self.duplicates += 1
            return
        self._seen(time_ms)
        if not event.request_id:
            return  # not from a list
        request = hash_of(event.request_id)
        decision = self.memory.decision(request)
        if decision is None:
            self.memory.wait(request, key, time_ms, event.event_type)
        else:
            decision_ms, arms = decision
            self._attribute(decision_ms, self._combinations[arms], time_ms, event.event_type)

    def advance(self, watermark_ms: int) -> None:
        """Forget what no message at or after the watermark can change. O(what is remembered)."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        # A decision accepts feedback up to a window after it; feedback waits for a decision that
        # is younger than itself by no more than clocks may disagree.
        self.unmatched += self.memory.forget(
            decisions_before=self.watermark_ms - self.window_ms,
            events_before=self.watermark_ms,
            waiting_before=self.watermark_ms - self.skew_ms,
        )

    def _seen(self, time_ms: int) -> None:
        """Note the newest time. One ahead of the reader's clock counts as what it says, but by it
        nothing else may look old and be forgotten."""
        if time_ms <= self.newest_ms:
            return
        if time_ms <= self.latest_ms():
            self.newest_ms = time_ms
        else:
            self.ahead += 1

    def _counts(self, arm: ArmKey) -> ArmCounts:
        counts = self.arms.get(arm)
        if counts is None:
            counts = self.arms[arm] = ArmCounts()
            self._arm_numbers[arm] = len(self._arm_numbers)
        return counts

    def _combination_number(self, arms: tuple[ArmKey, ...]) -> int:
        number = self._combination_numbers.get(arms)
        if number is None:
            number = self._combination_numbers[arms] = len(self._combinations)
            self._combinations.append(arms)
        return number

    def _attribute(
        self, decision_ms: int, arms: tuple[ArmKey, ...], feedback_ms: int, event_type: int
    ) -> None:
        if not -self.skew_ms <= feedback_ms - decision_ms <= self.window_ms:
            self.late += 1
            return
        name = _COUNTS.get(event_type)
        if name is not None:
            for arm in arms:
                setattr(self.arms[arm], name, getattr(self.arms[arm], name) + 1)


def _unit_id(record: records_pb2.DecisionRecord, unit: str) -> str:
    """The id by which an experiment on such units has assigned a request."""
    match unit:
        case "session":
            return record.session_id
        case "user" | "":
            return record.user_id
        case _:
            return record.unit_ids.get(unit, "")


_AHEAD = (
    "decisions or feedback lie ahead of this machine's clock: set the clock of the router that"
    " wrote them, or this one (tandem_joiner_ahead_messages counts them); they move no watermark"
)


class Joiner:
    """The fold over a log's two topics. Used by one thread. Forgets the groups that it and its
    killed predecessors made."""

    def __init__(
        self,
        event_log: EventLog,
        window_s: float,
        poll_records: int,
        memory_folder: Path | None = None,
        latest_ms: Callable[[], int] = latest_by_the_clock,
    ) -> None:
        """`memory_folder` takes the file of what is remembered (`JoinMemory`); times after
        `latest_ms()` are ahead of the clock."""
        self.caught_up = self._said_ahead = False
        with contextlib.ExitStack() as opened:
            memory = JoinMemory(memory_folder)
            self.state = JoinState(int(window_s * 1000), latest_ms=latest_ms, memory=memory)
            opened.callback(self.state.memory.close)
            self._log = WholeLog(
                event_log, READER, poll_records, self.state.on_decision, self.state.on_feedback
            )
            opened.pop_all()

    @property
    def undecodable(self) -> int:
        """Records that are no valid message."""
        return self._log.undecodable

    def step(self, timeout_s: float) -> int:
        """Fold what is there, waiting up to `timeout_s` per topic for it; number of records.

        Raises LogUnavailable; what was delivered before it is folded: it will not come again.
        """
        read = self._log.step(timeout_s)
        self.state.memory.checkpoint()
        return read

    def report(self) -> dict[str, Lag]:
        """The lag per topic; when there is none, lets the state forget what is long past.

        Only then, because while partitions are read at different speeds the newest event seen says
        nothing about how old the next one may be.
        """
        lags = self._log.lags()
        if self.state.ahead and not self._said_ahead:
            self._said_ahead = True
            log.error("messages_ahead_of_this_clock", cause=_AHEAD)
        self.caught_up = self._log.assigned() and not any(lag.events for lag in lags.values())
        state = self.state
        watermark_ms = state.newest_ms - state.window_ms - GRACE_MS
        # In strides of a tenth of the window: each pass looks at everything that is remembered.
        if self.caught_up and watermark_ms > state.watermark_ms + state.window_ms // 10:
            state.advance(watermark_ms)
        return lags

    def close(self) -> None:
        self._log.close()
        self.state.memory.close()


def totals(joiner: Joiner) -> dict[str, int]:
    """The counts that belong to no arm."""
    state = joiner.state
    return {
        "unmatched": state.unmatched,
        "late": state.late,
        "duplicates": state.duplicates,
        "ahead": state.ahead,
        "undecodable": joiner.undecodable,
    }


def snapshot(joiner: Joiner, lags: dict[str, Lag], now_ms: int) -> dict[str, Any]:
    """What joiner.json says: numbers per arm, totals, and how fresh they are."""
    state = joiner.state
    return {
        "written_ms": now_ms,
        "newest_ms": state.newest_ms,
        "watermark_ms": state.watermark_ms,
        "caught_up": joiner.caught_up,
        "lag": {topic: {"events": g.events, "seconds": g.seconds} for topic, g in lags.items()},
        "arms": [{**key._asdict(), **vars(counts)} for key, counts in sorted(state.arms.items())],
        "totals": {
            **totals(joiner),
            "waiting": state.memory.waiting_events,
        },
    }


def publish(joiner: Joiner, lags: dict[str, Lag]) -> None:
    """Set the Prometheus gauges."""
    for key, counts in joiner.state.arms.items():
        for name, number in vars(counts).items():
            ARM_GAUGES[name].labels(key.experiment, key.arm).set(number)
    for name, number in totals(joiner).items():
        TOTAL_GAUGES[name].set(number)
    MEMORY_BYTES.set(joiner.state.memory.bytes_on_disk())
    for topic, lag in lags.items():
        LAG_EVENTS.labels(topic).set(lag.events)
        LAG_SECONDS.labels(topic).set(lag.seconds)


def write_snapshot(path: Path, content: dict[str, Any]) -> None:
    """Replace the file whole, so that a reader never sees half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def run_joiner(settings: Settings, stop: threading.Event) -> None:
    """Run the joiner of these settings until `stop` or SIGTERM.

    Call it from the main thread of its own process, after configure_logging. Serves /metrics on
    feedback.joiner_metrics_port, announces itself as `joiner` with that address, and replaces
    run_dir/joiner.json every second. An outage of the log is waited out, at the start and later;
    when the log goes back, it begins anew. Raises sqlite3.Error when the disk of what it remembers
    fails.
    """
    stop_on_sigterm(stop)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    host = settings.router.host
    with contextlib.ExitStack() as opened:
        event_log = opened.enter_context(contextlib.closing(connect(settings.event_log)))

        def begin() -> Joiner:
            return Joiner(
                event_log,
                settings.feedback.join_window_s,
                settings.feedback.poll_records,
                settings.run_dir,
                lambda: latest_by_the_clock(settings.feedback.max_future_s),
            )

        try:
            joiner = wait_for("the event log", begin, stop, LogUnavailable)
            server, _, port = telemetry.serve_metrics(
                "joiner", host, settings.feedback.joiner_metrics_port
            )
            opened.callback(server.server_close)
            opened.callback(server.shutdown)
            address = joined(host, port)
            folder = replica_folder(settings.run_dir, "joiner")
            opened.callback(Announcement(folder, address, metrics=address).withdraw)
            log.info("joiner_started", metrics_port=port)
            while not _folded(joiner, settings.run_dir / SNAPSHOT, stop):
                joiner = wait_for("the event log", begin, stop, LogUnavailable)
        except Stopped:
            pass  # told to while there was nothing to read
    log.info("joiner_stopped")


def _folded(joiner: Joiner, snapshot_file: Path, stop: threading.Event) -> bool:
    """Fold until told to stop; False when the log that was read is no more: its numbers go."""
    with contextlib.closing(joiner):
        try:
            fold_until_stopped(joiner, snapshot_file, stop)
        except LogWentBack as error:
            log.error("joiner_begins_anew", cause=str(error))
            for gauge in ARM_GAUGES.values():
                gauge.clear()
            return False
    return True


def fold_until_stopped(joiner: Joiner, snapshot_file: Path, stop: threading.Event) -> None:
    """Fold, and report once a second and once at the end.

    A log or a snapshot that fails is logged; reading goes on and the next report is another
    attempt. When the disk of its memory fails it raises sqlite3.Error: numbers that lost something
    are worth nothing, and the next joiner reads the log anew.
    """
    next_report = 0.0
    while True:
        stopping = stop.is_set()
        try:
            if not stopping:
                joiner.step(POLL_S)
            if stopping or time.monotonic() >= next_report:
                next_report = time.monotonic() + REPORT_EVERY_S
                lags = joiner.report()
                publish(joiner, lags)
                write_snapshot(snapshot_file, snapshot(joiner, lags, time.time_ns() // 1_000_000))
        except LogUnavailable as error:
            log.warning("joiner_waits", cause=str(error), seconds=BACKOFF_S)
            stop.wait(BACKOFF_S)
        except OSError as error:  # the snapshot's; the counts themselves are in memory
            log.warning("joiner_snapshot_not_written", file=str(snapshot_file), cause=str(error))
        if stopping:
            return
