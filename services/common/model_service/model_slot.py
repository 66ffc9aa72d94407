"""The served version of one model, replaced while requests run.

A new version is loaded beside the old one, warmed with recent requests, judged by its answers to
them, and swapped in by one assignment; batches that hold the old version finish on it. When it is
taken up, and what happens to one that cannot be, is said in `current_version`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from services.common.current_version import CurrentVersion, Loaded

Job = TypeVar("Job")

RECENT = 16  # requests that a new version is warmed with


class ModelSlot(CurrentVersion[Loaded], Generic[Loaded, Job]):
    """`loaded` is the version to use now; take it once per batch. `recent` are the last jobs that
    a version of this model has answered well."""

    def __init__(
        self,
        name: str,
        artifacts_dir: Path,
        load: Callable[[Path], Loaded],
        warm: Callable[[Loaded, Sequence[Job]], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`warm` runs recent jobs; it raises artifact.ArtifactError if the answers are none."""
        self.recent: deque[Job] = deque(maxlen=RECENT)

        def load_and_warm(folder: Path) -> Loaded:
            loaded = load(folder)
            warm(loaded, list(self.recent))
            return loaded

        super().__init__(artifacts_dir, name, load_and_warm, what="model", monotonic=monotonic)

    async def follow(self, poll_s: float) -> None:
        """Refresh every `poll_s` seconds until cancelled, off the event loop."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(poll_s)
            await loop.run_in_executor(None, self.refresh)


async def any_in_force(slots: Iterable[ModelSlot[Loaded, Job]], poll_s: float) -> None:
    """Try every slot, and again every `poll_s` seconds as long as none has a version to serve.

    One is enough: the others are followed, and their models' requests are refused meanwhile.
    """
    loop = asyncio.get_running_loop()
    slots = list(slots)
    while True:
        for slot in slots:
            await loop.run_in_executor(None, slot.refresh)
        if any(slot.in_force for slot in slots):
            return
        await asyncio.sleep(poll_s)


def warm_up_jobs(recent: Sequence[Job], defaults: Sequence[Job]) -> list[list[Job]]:
    """Batches to warm a version with: the recorded requests one by one and together.

    `defaults` go with them, for what nobody has asked yet. Both shapes matter: kernels are chosen
    by size.
    """
    jobs = [*defaults, *recent]
    return [*([job] for job in jobs), jobs]
