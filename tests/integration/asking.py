"""What the tests of a router ask it, and how they read what it wrote."""

from __future__ import annotations

import time

from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1.records_pb2 import CLICK, FeedbackEvent
from services.event_log.connect import connect as connect_log
from services.event_log.interface import EventLog
from tests.integration.conftest import InProcess


def request(user: str = "u1", **changes: object) -> pb.RecommendRequest:
    return pb.RecommendRequest(
        **{"user_id": user, "surface": "home", "num_items": 10, "explain": True, **changes}
    )


def click(user: str, item: str, event_id: str) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=event_id,
        user_id=user,
        item_id=item,
        event_type=CLICK,
        event_time_ms=int(time.time() * 1000),
    )


def records(installation: InProcess, topic: str, count: int) -> list:
    """The first `count` records of a topic, read by a consumer group of its own."""
    log = connect_log(installation.settings.event_log, None)
    found = read_log(log, topic, count)
    log.close()
    return found


def read_log(log: EventLog, topic: str, count: int) -> list:
    consumer = log.consumer(topic, "test-reader")
    found = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.poll(100, 0.2)
    consumer.close()
    return found
