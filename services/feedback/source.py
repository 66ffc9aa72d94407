"""Which event log the rows of a feature store come from.

Rows remember how far the log was read. Those of another log, or of a topic that was deleted and
made anew, would be compared with offsets that they know nothing of: new events would be taken for
applied ones, without a word. So the store remembers which topic it has read, and no other may be
applied to it.
"""

from __future__ import annotations

import xxhash

from feature_store import codec
from feature_store.interface import FeatureStore, RowKey
from models.schema import SOURCE
from services.common.settings import Settings
from services.event_log import topics
from services.event_log.interface import EventLog

ATTEMPTS = 10


class OtherLog(Exception):
    """The store has read another log; the message says what to do."""


def claim(store: FeatureStore, event_log: EventLog, settings: Settings, now_ms: int) -> None:
    """Note that the store reads this log's feedback, if it has read no other: OtherLog.

    Raises what store and log raise when they cannot be reached.
    """
    identity = event_log.identity(topics.FEEDBACK)
    if not identity:
        return  # of a log from before logs had one
    wanted = xxhash.xxh3_64_intdigest(identity.encode())
    for _ in range(ATTEMPTS):
        (row,) = store.read([RowKey(SOURCE.name, topics.FEEDBACK)])
        known = codec.decode(SOURCE, row) if row else None
        if known is not None:
            if int(known.record["identity"]) == wanted:
                return
            raise OtherLog(
                f"the features in {settings.feature_store.url} were made from another event log"
                f" than {settings.event_log.url} (or its topic {topics.FEEDBACK!r} was made anew):"
                " new events would be taken for old ones. Empty the feature store, or set both"
                " URLs as they were"
            )
        record = SOURCE.defaults()
        record["identity"] = wanted
        version = codec.row_version(row)
        write = codec.guarded_write(topics.FEEDBACK, SOURCE, version, {SOURCE.name: record}, now_ms)
        if store.write([write])[0]:
            return
    raise RuntimeError("the row that names the store's log is written by others all the time")
