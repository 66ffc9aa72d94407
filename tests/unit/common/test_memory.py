"""What large batches needed goes back to the system once nothing is computed."""

from __future__ import annotations

import os
import subprocess
import sys

from services.common.model_service import memory

# Blocks that malloc has to get from the system, freed but for one in a thousand of them.
LITTERED = """
import asyncio, psutil
from services.common.model_service.memory import give_back

def resident():
    return psutil.Process().memory_info().rss / 2**20

async def main():
    idle = False
    giving = asyncio.create_task(give_back(lambda: idle, 0.001))
    await asyncio.sleep(0)
    blocks = [bytearray(5000) for _ in range(60_000)]
    blocks = blocks[::1000]
    littered = resident()
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert resident() > littered - 10, "given back while busy"
    idle = True
    async with asyncio.timeout(20):
        while resident() > littered - 200:
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_freed_memory_goes_back_when_nothing_is_computed_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", LITTERED], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_what_the_owner_has_set_is_kept(monkeypatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")  # to be put back afterwards
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    memory.bound_kernels(2)
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "512"
