"""Replicas of the model services, and one of them hosted by a process of its own, without Ray.

`tandem serve ranking` and `tandem serve candidate_generation` run one each, `tandem serve --local`
as many as the settings want. What Ray Serve does for a replica otherwise (hosting.py), the
supervisor does for this process: it starts it again when it has ended. So it ends when something
in it has died or when its event loop has stopped; nobody has to ask it.

Not guaranteed: the end of a start that hangs; and a GPU of its own, which Ray deals out: here all
replicas of a machine use the first one that CUDA_VISIBLE_DEVICES shows them.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import signal

import structlog

from services.common.listener import Listener
from services.common.settings import Settings

log = structlog.get_logger()

KINDS = ("candidate_generation", "ranking")
HEALTH_PERIOD_S = 1.0
HUNG_S = 30.0  # an event loop that has stopped for so long does not come back


async def start_replica(kind: str, settings: Settings) -> Listener:
    """A replica of a service in this process, listening and announced, as soon as it has a model.

    Its module is imported here: whoever only places replicas needs no torch.
    """
    module = importlib.import_module(f"services.{kind}.deployment")
    try:
        replica: Listener = await module.start_replica(settings)
    except Exception as error:
        log.error("replica_not_started", service=kind, cause=repr(error))
        raise
    return replica


async def run_replica(kind: str, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Call it on the main thread of its own process.

    Raises what the start raised, or, after the drain, what a background task has died of.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    starting = asyncio.create_task(start_replica(kind, settings))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # there may be no model yet; nobody knows of this replica
        starting.cancel()
        return
    replica = await starting
    try:
        while not stop.is_set():
            # Unless the loop comes back to here: a thread of C's ends this process, with the traces
            # of all others in its log, also while one of them keeps the interpreter to itself.
            faulthandler.dump_traceback_later(HUNG_S, exit=True)
            replica.check()
            await asyncio.wait({stopping}, timeout=HEALTH_PERIOD_S)
    finally:
        faulthandler.cancel_dump_traceback_later()
        await replica.drain()
