"""The names of the event log's topics; what they carry is in protos/tandem/v1/records.proto."""

from __future__ import annotations

FEEDBACK = "feedback"  # FeedbackEvent: what users did
DECISIONS = "decisions"  # DecisionRecord: what they were shown, and why
EXPERIMENTS = "experiments"  # ExperimentChange: what the worker or a person changed while they ran
DEAD_LETTERS = "feedback.dlq"  # records of FEEDBACK that can never be applied
ITEMS = "items"  # ItemRecord: the catalogue's items as they are

# Of which the last record of each key is kept, for ever, and the earlier ones may go.
COMPACTED = frozenset({ITEMS})
