"""The topics of the event log on Kafka: how they are made, and what one must be like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import InvalidConfigurationError, TopicAlreadyExistsError, for_code

from services.event_log.interface import TopicUnfit

log = structlog.get_logger(__name__)

# Of the broker's clock a record may be. More than any feedback.max_future_s, so that what a router
# takes a broker does, too, and little beside a retention of days.
FARTHEST_AHEAD_MS = 90_000_000
# Old records expire, or give way to later ones of their key. Of a topic that is not declared as
# compacted the key (a user, an experiment's salt) is one of many records that all count. What must
# outlive retention in `experiments` its worker appends again.
EXPIRING, COMPACTED = "delete", "compact"
FOR_EVER_MS = -1


class KafkaTopics:
    """Opens topics by their names at the broker. Raises KafkaError, and TopicUnfit."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        partitions: int,
        retention_ms: int,
        compacted: frozenset[str],
    ) -> None:
        self._servers = ",".join(bootstrap)
        self._partitions = partitions
        self._retention_ms = retention_ms
        self._compacted = compacted

    def open(self, admin: KafkaAdminClient, topic: str) -> int:
        """Create the topic unless it exists, refuse one that loses records; its partitions."""
        compacted = topic in self._compacted
        partitions = 1 if compacted else self._partitions
        configs = {
            "cleanup.policy": COMPACTED if compacted else EXPIRING,
            "retention.ms": str(FOR_EVER_MS if compacted else self._retention_ms),
            "message.timestamp.type": "CreateTime",
            # Whatever a foreign producer compresses with, readers need no codec for it.
            "compression.type": "uncompressed",
            # Retention goes by the newest time in a segment.
            "message.timestamp.after.max.ms": str(FARTHEST_AHEAD_MS),
        }
        try:
            try:
                _create(admin, topic, partitions, configs)
            except InvalidConfigurationError:  # brokers before 3.6 have no bound for it
                del configs["message.timestamp.after.max.ms"]
                _create(admin, topic, partitions, configs)
        except TopicAlreadyExistsError:
            admin.wait_for_topics([topic])
        self.check(admin, topic)
        found = len(described(admin, topic)["partitions"])
        if compacted and found != 1:
            raise TopicUnfit(
                f"topic {topic} at {self._servers} has {found} partitions, and its records no one"
                " order; it must have 1: delete it to begin it anew"
            )
        return found

    def check(self, admin: KafkaAdminClient, topic: str) -> None:
        """TopicUnfit for a topic that loses records that count."""
        wanted = COMPACTED if topic in self._compacted else EXPIRING
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, ["cleanup.policy"])
        answer = admin.describe_configs([resource], config_filter="all")
        found = answer["topic"][topic].get("cleanup.policy", {}).get("value")
        if found is None:  # the broker does not tell everybody
            log.warning("topic_not_checked", topic=topic, wanted=wanted)
        elif found != wanted:
            raise TopicUnfit(
                f"topic {topic} at {self._servers} has cleanup.policy={found} and loses records"
                f" that count; it must have {wanted}: kafka-configs --bootstrap-server"
                f" {self._servers} --alter --entity-type topics --entity-name {topic} --add-config"
                f" cleanup.policy={wanted}"
            )


def described(admin: KafkaAdminClient, topic: str) -> dict[str, Any]:
    """What the broker says of a topic that exists; KafkaError where it does not."""
    found: dict[str, Any] = admin.describe_topics([topic])[0]
    if found["error_code"]:
        raise for_code(found["error_code"])(topic)
    return found


def _create(admin: KafkaAdminClient, topic: str, partitions: int, configs: dict[str, str]) -> None:
    options = {"num_partitions": partitions, "configs": configs}
    admin.create_topics({topic: options}, wait_for_metadata=True)
