"""The backends of the contract suites."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from tests.contract.event_logs import (
    Backend,
    locked,
    move_embedded_group,
    move_kafka_group,
    new_name,
)
from tests.servers.kafka import Broker, kafka_broker
from tests.servers.redis import RedisServer, redis_server


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    with kafka_broker() as running:
        yield running


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "embedded":
        root = tmp_path / "events"
        made = Backend(
            f"log://{root}",
            lambda topic: locked(root / topic),
            lambda topic: shutil.rmtree(root / topic),
            partial(move_embedded_group, root),
        )
        yield made
    else:
        running = request.getfixturevalue("broker")
        with contextlib.closing(KafkaAdminClient(bootstrap_servers=running.bootstrap)) as admin:
            made = Backend(
                f"kafka://{running.bootstrap}",
                lambda topic: running.stopped(),
                lambda topic: admin.delete_topics([topic]),
                partial(move_kafka_group, admin),
            )
            yield made
    made.close()


@pytest.fixture
def topic() -> str:
    return new_name()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server
