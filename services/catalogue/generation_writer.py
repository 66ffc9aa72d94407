"""When a builder writes generations, and that it goes on meanwhile.

The first change GENERATION_S after the last one, and never so often that writing takes more than a
twentieth of the time; and once at the end. What is written is the state of one moment.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from models import sealed
from services.catalogue import generations
from services.catalogue.fold import CatalogueFold
from services.common.telemetry import OwnedGauge

log = structlog.get_logger(__name__)

GENERATION_S = 60.0
PAUSE_PER_S = 20.0  # without writing, per second that it took

GENERATION_AT = OwnedGauge(
    "tandem_catalogue_generation_timestamp_seconds",
    "When the last generation was written; when it gets old, starts take longer.",
)


class GenerationWriter:
    """Used by the builder's thread; writes on one of its own."""

    def __init__(
        self, folder: Path, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._folder, self._clock, self._monotonic = folder, clock, monotonic
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="generations")
        self._writing: Future[Path | None] | None = None
        self._changes = -1  # of the fold, that are written; -1: nothing is
        self._write_at = 0.0

    def begin(self, there: bool) -> None:
        """A fold begins, with a generation that is there or with none."""
        self._changes = 0 if there else -1

    def write_when_due(self, fold: CatalogueFold, topic: str) -> None:
        """Begin to write where it is time and there is something new."""
        if self._writing is not None:
            if not self._writing.done():
                return
            self._settle(fold)
        if self._monotonic() >= self._write_at and fold.changes > self._changes:
            self._writing = self._pool.submit(self._write, state_of(fold, topic))

    def close(self, fold: CatalogueFold | None, topic: str) -> None:
        """Wait for what is being written, and write what is new in `fold`. Idempotent."""
        self._pool.shutdown(wait=True)
        if fold is not None and fold.changes > self._changes:
            self._write(state_of(fold, topic))

    def _write(self, state: generations.State) -> Path | None:
        started = self._monotonic()
        try:
            made = generations.write(self._folder, state)
        except (OSError, sealed.Broken) as error:  # a full disk: starts take longer, that is all
            log.error("generation_not_written", folder=str(self._folder), cause=str(error))
            return None
        else:
            self._changes = state.changes
            GENERATION_AT.set(self._clock())
            log.info("generation_written", generation=made.name, rows=len(state.items))
            return made
        finally:
            took = self._monotonic() - started
            self._write_at = self._monotonic() + max(GENERATION_S, PAUSE_PER_S * took)

    def _settle(self, fold: CatalogueFold) -> None:
        """Let go of the records in memory that are in the generation just written."""
        assert self._writing is not None
        assert fold.records is not None
        written, self._writing = self._writing.result(), None
        try:
            fold.records.settle(written)
        except (OSError, ValueError) as error:  # they stay in memory
            log.error("generation_not_opened", generation=str(written), cause=str(error))


def state_of(fold: CatalogueFold, topic: str) -> generations.State:
    """What is written, as of now: the fold goes on meanwhile."""
    assert fold.records is not None
    fold.records.divide()
    return generations.State.of(fold, topic)
