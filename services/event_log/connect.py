"""Open the event log that the settings' URL names; nothing else knows which backend it has."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from pathlib import Path

from services.common.settings import EventLogSettings, SettingsInvalid
from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import EventLog
from services.event_log.topics import COMPACTED

SERVER = re.compile(r"(\[[^\[\]@/]+\]|[^\[\]@/:\s]+)(:[0-9]+)?")


def connect(
    settings: EventLogSettings,
    installation: str | None,
    clock: Callable[[], float] = time.time,
    compacted: Collection[str] = COMPACTED,
) -> EventLog:
    """The log at `log://path` or `kafka://host:port[,host:port]`; SettingsInvalid otherwise.

    `installation` is the setting of that name: what of a broker is ours. A folder is one's alone.
    `clock` gives seconds since the epoch: ages and retention count from it. `compacted`: the topics
    that are.
    """
    scheme, separator, address = settings.url.partition("://")
    if separator and address:
        if scheme == "log":
            return EmbeddedEventLog(
                Path(address),
                partitions=settings.partitions,
                segment_mb=settings.segment_mb,
                retention_days=settings.retention_days,
                max_pending=settings.max_pending,
                compacted=compacted,
                clock=clock,
            )
        if scheme == "kafka":
            # Imported when asked for: kafka-python takes a second and 30 MB.
            from services.event_log.kafka import KafkaEventLog

            servers = address.split(",")
            # No part of it is shown: somebody may have put a password there.
            if not all(SERVER.fullmatch(server) for server in servers):
                raise SettingsInvalid(
                    "event_log.url must be kafka://host:port[,host:port], without user, password"
                    " or anything else"
                )
            return KafkaEventLog(
                servers,
                installation=installation,
                partitions=settings.partitions,
                retention_days=settings.retention_days,
                max_pending=settings.max_pending,
                compacted=compacted,
                append_timeout_s=settings.append_timeout_s,
                clock=clock,
            )
    found = f", not {scheme}://" if separator else ""
    raise SettingsInvalid(
        f"event_log.url must be log://path or kafka://host:port[,host:port]{found}"
    )
