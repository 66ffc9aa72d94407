"""What only the event log on Kafka can get wrong: its topics, its batches, a silent broker."""

from __future__ import annotations

import contextlib
import re
import time
from concurrent import futures

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.net.compat import KafkaNetClient
from structlog.testing import capture_logs

from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import (
    Consumer,
    LogCorrupt,
    LogRecord,
    LogUnavailable,
    Record,
    TopicUnfit,
)
from tests.contract.event_logs import (
    NOW_MS,
    PATIENCE_S,
    new_name,
    places,
    poll_until_raised,
    read,
    read_from,
    read_until,
    records,
)
from tests.servers.kafka import Broker


@pytest.mark.kafka
def test_what_the_broker_refuses_of_one_append_fails_no_other(broker: Broker, topic: str) -> None:
    log = connect(EventLogSettings(url=f"kafka://{broker.bootstrap}", partitions=1), None)
    log.partitions(topic)
    set_config(broker, topic, "message.timestamp.before.max.ms", "3600000")
    appended = []
    for number, late_ms in enumerate([0, 0, 86_400_000, 0, 86_400_000, 0] * 10):
        one = Record(b"k", b"%d" % number, int(time.time() * 1000) - late_ms)
        appended.append((late_ms, one.value, log.append(topic, [one])))
    stored = []
    for late_ms, value, future in appended:
        if late_ms:
            with pytest.raises(LogUnavailable, match="Timestamp"):
                future.result(PATIENCE_S)
        else:
            future.result(PATIENCE_S)
            stored.append(value)
    consumer = log.consumer(topic, "g")
    assert [r.value for r in read(consumer, len(stored))] == stored
    consumer.close()
    log.close()


@pytest.mark.kafka
def test_a_topic_is_made_so_that_records_expire_need_no_codec_and_come_from_no_far_future(
    broker: Broker, topic: str
) -> None:
    log = connect(EventLogSettings(url=f"kafka://{broker.bootstrap}", retention_days=2), None)
    log.partitions(topic)
    assert configs(broker, topic) == {
        "cleanup.policy": "delete",
        "retention.ms": "172800000",
        "compression.type": "uncompressed",
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": "90000000",
    }
    ahead = Record(b"k", b"v", int(time.time() * 1000) + 2 * 86_400_000)
    with pytest.raises(LogUnavailable, match="Timestamp"):
        log.append(topic, [ahead]).result(PATIENCE_S)
    log.close()


@pytest.mark.kafka
def test_a_compacted_topic_is_made_so_that_the_last_record_of_a_key_never_goes(
    broker: Broker, topic: str
) -> None:
    settings = EventLogSettings(url=f"kafka://{broker.bootstrap}", retention_days=2)
    log = connect(settings, "shop", compacted=[topic])
    assert log.partitions(topic) == 1
    assert configs(broker, f"shop.{topic}") == {
        "cleanup.policy": "compact",
        "retention.ms": "-1",
        "compression.type": "uncompressed",
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": "90000000",
    }
    set_config(broker, f"shop.{topic}", "cleanup.policy", "compact,delete")
    refusal = (
        rf"topic shop.{topic} at {broker.bootstrap} has cleanup.policy=compact,delete .* must have"
        rf" compact: kafka-configs .*--entity-name shop.{topic} --add-config cleanup.policy=compact"
    )
    with pytest.raises(TopicUnfit, match=refusal):
        log.reader(topic)
    set_config(broker, f"shop.{topic}", "cleanup.policy", "compact")
    log.reader(topic).close()
    log.close()


@pytest.mark.kafka
def test_a_compacted_topic_of_several_partitions_is_refused(broker: Broker, topic: str) -> None:
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        made = {"num_partitions": 2, "configs": {"cleanup.policy": "compact"}}
        admin.create_topics({topic: made}, wait_for_metadata=True)
    settings = EventLogSettings(url=f"kafka://{broker.bootstrap}")
    log = connect(settings, None, compacted=[topic])
    for refused in (
        lambda: log.append(topic, records(1)).result(PATIENCE_S),
        lambda: log.reader(topic),
    ):
        with pytest.raises(TopicUnfit, match=f"topic {topic} .* has 2 partitions.* must have 1"):
            refused()
    log.close()


@pytest.mark.kafka
def test_a_reader_whose_start_is_deleted_goes_on_at_the_earliest_record_and_says_so(
    broker: Broker, topic: str
) -> None:
    log = connect(EventLogSettings(url=f"kafka://{broker.bootstrap}", partitions=1), None)
    log.append(topic, records(10)).result()
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.delete_records({TopicPartition(topic, 0): 7})
    with capture_logs() as said:
        assert [r.offset for r in read_from(log, topic, 4)] == [7, 8, 9]
    assert [line["records"] for line in said] == [3]
    assert [r.offset for r in read_from(log, topic, 8)] == [8, 9]
    with contextlib.closing(log.reader(topic)) as reader:
        assert reader.positions() == {0: 7}
    log.close()


@pytest.mark.kafka
def test_a_topic_that_keeps_one_record_of_a_key_is_refused_until_it_is_altered(
    broker: Broker, topic: str
) -> None:
    url = f"kafka://{broker.bootstrap}"
    log = connect(EventLogSettings(url=url), None)
    log.append(topic, records(4)).result()
    members = [log.consumer(topic, "g") for _ in range(2)]
    seen = read_until(members, lambda: all(m.assigned() for m in members))
    set_config(broker, topic, "cleanup.policy", "compact")
    refusal = (
        rf"topic {topic} at {broker.bootstrap} has cleanup.policy=compact .* must have delete:"
        rf" kafka-configs .*--entity-name {topic} --add-config cleanup.policy=delete"
    )
    with pytest.raises(TopicUnfit, match=refusal):
        log.consumer(topic, "other")
    members[0].close()
    with pytest.raises(TopicUnfit, match=refusal):  # noticed when partitions are dealt anew
        seen += read_until(members[1:], lambda: False)
    later = connect(EventLogSettings(url=url), None)
    with pytest.raises(TopicUnfit, match=refusal):
        later.append(topic, records(1)).result()
    set_config(broker, topic, "cleanup.policy", "delete")
    later.append(topic, records(1)).result()
    members[1].rewind()
    assert len(places(read_until(members[1:], lambda: not members[1].lag().events))) == 5
    members[1].close()
    log.close()
    later.close()


def configs(broker: Broker, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        made = admin.describe_configs([resource])["topic"][topic]
    return {name: config["value"] for name, config in made.items()}


def set_config(broker: Broker, topic: str, name: str, value: str) -> None:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, {name: value})
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.alter_configs([resource])


@pytest.mark.kafka
def test_a_batch_that_cannot_be_decoded_is_said_again_and_again_and_nothing_is_skipped(
    broker: Broker, topic: str
) -> None:
    if broker.folder is None:
        pytest.skip("the files of the broker are not ours to damage")
    log = connect(EventLogSettings(url=f"kafka://{broker.bootstrap}", partitions=1), None)
    for value in (b"before", b"damaged", b"after"):
        log.append(topic, [Record(b"k", value, NOW_MS)]).result()
    (segment,) = (broker.folder / f"{topic}-0").glob("*.log")
    with segment.open("r+b") as file:
        file.seek(segment.read_bytes().index(b"damaged"))
        file.write(b"D")
    consumer = log.consumer(topic, "g")
    assert [r.value for r in read(consumer, 1)] == [b"before"]
    for _ in range(3):
        with pytest.raises(LogCorrupt, match=f"topic {topic}: partition 0 .* at offset 1: .*crc"):
            poll_until_raised(consumer)
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.delete_records({TopicPartition(topic, 0): 2})
    assert [r.value for r in read_through(consumer, LogCorrupt)] == [b"after"]
    consumer.close()
    log.close()


def read_through(consumer: Consumer, error: type[Exception]) -> list[LogRecord]:
    """Poll until something came, whatever else is raised before it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(error):
            if got := consumer.poll(1000, 0.1):
                return got
        assert time.monotonic() < deadline


@pytest.mark.kafka
def test_the_producer_sleeps_while_a_broker_is_silent(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    connection_delay = KafkaNetClient.connection_delay

    def counting(client: KafkaNetClient, node_id: int) -> float:
        nonlocal asked
        asked += 1
        return connection_delay(client, node_id)

    monkeypatch.setattr(KafkaNetClient, "connection_delay", counting)
    log = connect(EventLogSettings(url=f"kafka://{broker.bootstrap}", append_timeout_s=2.0), None)
    topics = topic, f"{topic}-other"
    for one in topics:
        log.append(one, records(8)).result()
    with broker.stopped():
        asked, pending = 0, [log.append(topics[0], records(8))]
        while not pending[0].done():
            # While a request is under way, others get ready.
            pending.append(log.append(topics[len(pending) % 2], records(8)))
            futures.wait(pending[:1], timeout=0.02)
    # Each record may wake its thread once or twice; spinning asked a hundred times more.
    assert asked < 3 * 8 * len(pending) + 100
    log.close()


@pytest.mark.kafka
def test_a_silent_broker_fails_appends_in_bounded_time_and_appends_work_once_it_is_back(
    broker: Broker, topic: str
) -> None:
    log = connect(EventLogSettings(url=f"kafka://{broker.bootstrap}", append_timeout_s=1.0), None)
    log.append(topic, records(1)).result()
    with broker.stopped():
        lost = log.append(topic, records(3, "silence"))
        with pytest.raises(LogUnavailable, match="took no record"):
            lost.result(timeout=PATIENCE_S)
        new_topic = log.append(new_name(), records(1))
        with pytest.raises(LogUnavailable):
            new_topic.result(timeout=PATIENCE_S)
    log.append(topic, records(1)).result()
    log.close()


def test_no_broker_at_all_fails_appends_consumers_and_readers() -> None:
    log = connect(EventLogSettings(url="kafka://127.0.0.1:1", append_timeout_s=0.5), None)
    with pytest.raises(LogUnavailable, match=re.escape("127.0.0.1:1")):
        log.append("t", records(1)).result(timeout=PATIENCE_S)
    with pytest.raises(LogUnavailable, match=re.escape("127.0.0.1:1")):
        log.consumer("t", "g")
    with pytest.raises(LogUnavailable, match=re.escape("127.0.0.1:1")):
        log.reader("t")
    log.close()
