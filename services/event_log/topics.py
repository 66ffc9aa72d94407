"""The names of the event log's topics; what they carry is in protos/tandem/v1/records.proto."""

from __future__ import annotations

FEEDBACK = "feedback"  # FeedbackEvent: what users did
DECISIONS = "decisions"  # DecisionRecord: what they were shown, and why
EXPERIMENTS = "experiments"  # ExperimentChange: what the worker or a person changed while they ran
DEAD_LETTERS = "feedback.dlq"  # records of FEEDBACK that can never be applied

# What becomes of old records. "delete": they expire. "compact" would keep the last one of a key
# alone, but the key of these topics (a user, an experiment's salt) is one of many records that all
# count. What must outlive retention in EXPERIMENTS its worker appends again.
CLEANUP_POLICY = {
    FEEDBACK: "delete",
    DECISIONS: "delete",
    EXPERIMENTS: "delete",
    DEAD_LETTERS: "delete",
}
