"""A second process for the event log's tests: it appends, or is a member of a consumer group.

    python -m tests.contract.event_log_process append URL TOPIC NAME   # ids, as acknowledged
    python -m tests.contract.event_log_process update URL TOPIC NAME   # the same, of few keys
    python -m tests.contract.event_log_process member URL TOPIC GROUP  # assignments and records

`member` commits what it prints only when asked to (a line on stdin). `update` appends to a
compacted topic, whose segments are so small that they are compacted all the time. All go on until
killed or until stdin ends; every output line is JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

import structlog

from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Record

IN_FLIGHT = 50
UPDATED_KEYS = 40
UPDATED_SEGMENT_MB = 2_000 / 2**20


@contextlib.contextmanager
def log_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run this module in a process that is gone when the block is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.contract.event_log_process", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        process.wait()


def append_until_closed(
    log: EventLog, topic: str, name: str, closed: threading.Event, keys: int | None = None
) -> None:
    """Append numbered records, several at a time in flight, and print each acknowledged id, which
    is a record's key unless there are only so many."""
    waiting: deque = deque()
    number = 0
    while not closed.is_set():
        batch = [f"{name}-{number + i}" for i in range(3)]
        number += 3
        now_ms = int(time.time() * 1000)
        records = [
            Record(b"%d" % (n % keys) if keys else each.encode(), each.encode() * 20, now_ms)
            for n, each in enumerate(batch, number - 3)
        ]
        waiting.append((batch, log.append(topic, records)))
        while len(waiting) > IN_FLIGHT or (waiting and waiting[0][1].done()):
            acknowledged, future = waiting.popleft()
            future.result()
            print(json.dumps(acknowledged), flush=True)
    log.close()


def poll_until_closed(
    log: EventLog, topic: str, group: str, closed: threading.Event, commit: threading.Event
) -> None:
    """Poll and print what was assigned and read whenever either is news."""
    consumer = log.consumer(topic, group)
    before = None
    while not closed.is_set():
        records = consumer.poll(100, 0.05)
        if commit.is_set():
            commit.clear()
            consumer.commit()
            print(json.dumps({"committed": True}), flush=True)
        assigned = sorted(consumer.assigned())
        if records or assigned != before:
            before = assigned
            read = [[r.partition, r.offset, r.value.decode()] for r in records]
            print(json.dumps({"assigned": assigned, "records": read}), flush=True)
    consumer.close()
    log.close()


def main(role: str, url: str, topic: str, name: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = EventLogSettings(url=url)
    if role == "update":
        settings = settings.model_copy(update={"segment_mb": UPDATED_SEGMENT_MB})
        log = connect(settings, None, compacted=[topic])
    else:
        log = connect(settings, None)
    closed, commit = threading.Event(), threading.Event()

    def follow_stdin() -> None:
        for _ in sys.stdin:
            commit.set()
        closed.set()

    threading.Thread(target=follow_stdin, daemon=True).start()
    if role == "append":
        append_until_closed(log, topic, name, closed)
    elif role == "update":
        append_until_closed(log, topic, name, closed, UPDATED_KEYS)
    else:
        poll_until_closed(log, topic, name, closed, commit)


if __name__ == "__main__":
    main(*sys.argv[1:])
