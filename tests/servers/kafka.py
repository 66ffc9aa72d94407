"""A real Kafka broker for the tests: KRaft, one node, started by us and stopped by its pid.

`KAFKA_BOOTSTRAP` names a broker to use instead. The jars come through Maven into tests/kafka/lib
once (`python -m tests.servers.kafka fetch`); without Java or jars the tests skip and say why, and
with CI=true they fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

KAFKA = Path(__file__).parent.parent / "kafka"
LIB = KAFKA / "lib"
FETCH_S = 600
START_S = 60.0


class BrokerUnavailable(Exception):
    """No broker can be had here; the message says what is missing."""


@dataclass(frozen=True)
class Broker:
    """A running broker. `pid` and the `folder` of its partitions are None when it is not ours."""

    bootstrap: str
    pid: int | None
    folder: Path | None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold our broker still (SIGSTOP): its port is open and nothing answers."""
        if self.pid is None:
            pytest.skip(f"the broker at {self.bootstrap} is not ours to stop")
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


def fetch_jars() -> None:
    """Copy the broker's jars into tests/kafka/lib, unless they are there."""
    if (LIB / ".complete").exists():
        return
    if shutil.which("mvn") is None:
        raise BrokerUnavailable("Maven (mvn) is not installed and tests/kafka/lib is empty")
    command = ["mvn", "-q", "-B", "-f", str(KAFKA / "pom.xml"), "dependency:copy-dependencies"]
    try:
        done = subprocess.run(
            [*command, f"-DoutputDirectory={LIB}"], capture_output=True, text=True, timeout=FETCH_S
        )
    except subprocess.TimeoutExpired:
        raise BrokerUnavailable(f"Maven has not fetched Kafka's jars in {FETCH_S} s") from None
    if done.returncode:
        raise BrokerUnavailable(f"Maven could not fetch Kafka's jars: {done.stdout[-500:]}")
    (LIB / ".complete").touch()


@contextlib.contextmanager
def kafka_broker() -> Iterator[Broker]:
    """A broker for the session, or a skip with the reason (CI=true: a failure)."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP"):
        yield Broker(bootstrap, None, None)
        return
    with contextlib.ExitStack() as stack:
        try:
            fetch_jars()
            broker = stack.enter_context(_own_broker())
        except BrokerUnavailable as error:
            if os.environ.get("CI") == "true":
                pytest.fail(f"no Kafka broker: {error}")
            pytest.skip(f"no Kafka broker: {error}")
        yield broker


@contextlib.contextmanager
def _own_broker() -> Iterator[Broker]:
    java = shutil.which("java")
    if java is None:
        raise BrokerUnavailable("Java is not installed")
    with tempfile.TemporaryDirectory(prefix="tandem-kafka-") as directory:
        root = Path(directory)
        port, controller_port = _free_ports(2)
        properties = root / "server.properties"
        properties.write_text(_properties(root, port, controller_port))
        run = [java, "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        run += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{LIB}/*"]
        cluster = uuid.uuid4().hex[:22]
        formatted = subprocess.run(
            [*run, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)],
            capture_output=True,
            text=True,
            cwd=root,
        )
        if formatted.returncode:
            raise BrokerUnavailable(f"Kafka's storage was not formatted: {formatted.stderr[-500:]}")
        output = root / "broker.log"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [*run, "kafka.Kafka", str(properties)],
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=root,
            )
        try:
            _wait_until_ready(process, f"127.0.0.1:{port}", output)
            yield Broker(f"127.0.0.1:{port}", process.pid, root / "logs")
        finally:
            process.kill()  # its directory goes too: there is nothing to put in order
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], bootstrap: str, output: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(KafkaError):
            admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=500)
            try:
                if admin.describe_cluster()["brokers"]:
                    return
            finally:
                admin.close()
    raise BrokerUnavailable(f"the broker did not start: {output.read_text()[-1000:]}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _properties(root: Path, port: int, controller_port: int) -> str:
    return f"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={root}/logs
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
"""


if __name__ == "__main__":
    if sys.argv[1:] != ["fetch"]:
        sys.exit("usage: python -m tests.servers.kafka fetch")
    try:
        fetch_jars()
    except BrokerUnavailable as problem:
        sys.exit(str(problem))
