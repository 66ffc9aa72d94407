"""The served version of one model, replaced while requests run.

A slot polls the artifact's `current.json`. A new version is loaded beside the old one, warmed with
recent requests, and swapped in by one assignment; batches that hold the old version finish on it.
A version that cannot be loaded or warmed leaves the old one serving and raises the metric.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog
from prometheus_client import Counter, Gauge

from models import artifact

log = structlog.get_logger()

SWAPS = Counter(
    "tandem_model_swaps_total",
    "Model versions taken up or refused; a refusal means the last publish is broken: roll it back.",
    ["model", "outcome"],
)
LOADED_AT = Gauge(
    "tandem_model_loaded_timestamp_seconds",
    "When the served version was loaded; replicas that differ for long have missed a publish.",
    ["model"],
)


class Versioned(Protocol):
    @property
    def version(self) -> str: ...


Loaded = TypeVar("Loaded", bound=Versioned)
Job = TypeVar("Job")


class ModelSlot(Generic[Loaded]):
    """`loaded` is the version to use now; take it once per batch."""

    def __init__(
        self,
        name: str,
        artifacts_dir: Path,
        load: Callable[[Path], Loaded],
        warm: Callable[[Loaded], None],
    ) -> None:
        """Loads and warms the current version; raises artifact.ArtifactError if it cannot."""
        self.name = name
        self._artifacts_dir = artifacts_dir
        self._load = load
        self._warm = warm
        self._folder = artifact.current(artifacts_dir, name)
        self.loaded = self._take(self._folder)

    def _take(self, folder: Path) -> Loaded:
        loaded = self._load(folder)
        self._warm(loaded)
        LOADED_AT.labels(self.name).set_to_current_time()
        log.info("model_loaded", model=self.name, version=loaded.version)
        return loaded

    def refresh(self) -> bool:
        """Take up a newly published version, if there is one; whether it changed."""
        try:
            folder = artifact.current(self._artifacts_dir, self.name)
            if folder == self._folder:
                return False
            self._folder = folder  # a version that fails is not tried again
            self.loaded = self._take(folder)
        except Exception as error:  # whatever a broken version raises, the old one must serve on
            SWAPS.labels(self.name, "refused").inc()
            log.error("model_refused", model=self.name, error=str(error))
            return False
        SWAPS.labels(self.name, "taken").inc()
        return True

    async def follow(self, poll_s: float) -> None:
        """Refresh every `poll_s` seconds until cancelled, off the event loop."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(poll_s)
            await loop.run_in_executor(None, self.refresh)


def warm_up_jobs(recent: Iterable[Job], default: Job) -> list[list[Job]]:
    """Batches to warm a version with: the recorded requests one by one and together.

    `default` stands in until there are any. Both shapes matter: kernels are chosen by size.
    """
    jobs = list(recent) or [default]
    return [*([job] for job in jobs), jobs]
