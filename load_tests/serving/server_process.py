"""A server in a process of its own, for as long as a `with` block runs.

The process ends with the block, and also when this process dies: it waits for the end of a pipe.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import psutil

from services.common.telemetry import configure_logging


class ServerDied(Exception):
    """The process ended before it served; its traceback is on stderr."""


class ServerProcess:
    """Where a started server listens, and what it has used."""

    def __init__(self, address: str, pid: int) -> None:
        self.address = address
        self.process = psutil.Process(pid)

    def cpu_s(self) -> float:
        """Processor time of the process so far."""
        times = self.process.cpu_times()
        return times.user + times.system


@contextmanager
def server_process(
    serve: Callable[..., AbstractAsyncContextManager[str]],
    *args: Any,
    run: Callable[..., None] = asyncio.run,
) -> Iterator[ServerProcess]:
    """Run `serve(*args)`, which yields its address, in a new process, on the event loop of `run`.

    All of them must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_run, args=(theirs, serve, args, run), daemon=True)
    child.start()
    theirs.close()
    try:
        try:
            address = ours.recv()
        except EOFError:
            raise ServerDied(f"{getattr(serve, '__name__', serve)} did not start") from None
        assert child.pid is not None
        yield ServerProcess(address, child.pid)
    finally:
        ours.close()
        child.join(30)
        if child.is_alive():
            child.kill()
            child.join()


def _run(
    connection: Connection,
    serve: Callable[..., AbstractAsyncContextManager[str]],
    args: tuple[Any, ...],
    run: Callable[..., None],
) -> None:
    configure_logging("warning", "console")

    async def main() -> None:
        async with serve(*args) as address:
            connection.send(address)
            # Readable when the other end is closed: nothing is ever sent.
            await asyncio.get_running_loop().run_in_executor(None, connection.poll, None)

    run(main())
