"""A server process serves while its block runs, and is gone after it, however the block ends."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from load_tests.serving.server_process import ServerDied, server_process


@asynccontextmanager
async def process_id(prefix: str) -> AsyncIterator[str]:
    yield f"{prefix}{os.getpid()}"


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    raise RuntimeError("cannot listen")
    yield ""


def test_the_process_is_another_one_and_ends_with_the_block() -> None:
    with server_process(process_id, "pid ") as server:
        assert server.address == f"pid {server.process.pid}"
        assert server.process.pid != os.getpid()
        assert server.cpu_s() > 0
    assert not psutil.pid_exists(server.process.pid)


def test_the_process_ends_when_the_block_fails() -> None:
    with pytest.raises(KeyError), server_process(process_id, "") as server:
        raise KeyError
    assert not psutil.pid_exists(server.process.pid)


def test_a_server_that_cannot_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ServerDied), server_process(refusing):
        pass
    assert "cannot listen" in capfd.readouterr().err
