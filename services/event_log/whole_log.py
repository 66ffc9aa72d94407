"""Reading all that the event log retains of decisions and feedback, by whoever folds it."""

from __future__ import annotations

from collections.abc import Callable

from protos.tandem.v1 import records_pb2
from services.event_log.interface import EventLog
from services.event_log.topics import DECISIONS, FEEDBACK
from services.event_log.whole_topics import WholeTopics

# Feedback cannot come before its list, but its sender's clock can be behind the router's.
SKEW_MS = 60_000


class WholeLog(WholeTopics):
    """Gives each decision and each feedback event to its callable. Used by one thread."""

    def __init__(
        self,
        event_log: EventLog,
        reader: str,
        poll_records: int,
        on_decision: Callable[[records_pb2.DecisionRecord], None],
        on_feedback: Callable[[records_pb2.FeedbackEvent], None],
    ) -> None:
        """`reader` names the groups; those that killed readers of that name left are deleted."""
        parse_decision = records_pb2.DecisionRecord.FromString
        parse_feedback = records_pb2.FeedbackEvent.FromString
        super().__init__(
            event_log,
            reader,
            poll_records,
            {
                DECISIONS: lambda record: on_decision(parse_decision(record.value)),
                FEEDBACK: lambda record: on_feedback(parse_feedback(record.value)),
            },
        )
