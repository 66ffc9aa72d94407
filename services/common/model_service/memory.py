"""What a replica's process keeps of the memory that large or many-shaped batches have needed.

torch compiles a kernel for each shape that a layer meets in bfloat16 and keeps the last 1,024 of
them in each of two caches, a third of a MB each: a replica that had answered requests of many
lengths held 650 MB of them. And what glibc's malloc has got from the system it rarely gives back.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

import psutil

KERNELS_PER_MODEL = 256  # mc_mlcc needs 13 for each number of requests in a batch, of 1 to 20
GROWTH_BYTES = 64 * 2**20  # since the last time; less is not worth looking for


def bound_kernels(models: int) -> None:
    """Keep the kernels of `models` models at most; to be called before the first one is run."""
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(models * KERNELS_PER_MODEL))


async def give_back(idle: Callable[[], bool], poll_s: float = 10.0) -> None:
    """Give memory that is not in use back to the system, at moments when nothing is computed.

    It takes some 50 ms, in which a request that comes may have to wait. Runs until cancelled.
    """
    # Only glibc has it; another C library may not need it.
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    loop = asyncio.get_running_loop()
    held = _resident_bytes()
    while True:
        await asyncio.sleep(poll_s)
        if trim is not None and idle() and _resident_bytes() > held + GROWTH_BYTES:
            await loop.run_in_executor(None, trim, 0)
            held = _resident_bytes()


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss
