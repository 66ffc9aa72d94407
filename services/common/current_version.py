"""The current version of one artifact, followed while new ones are published: one policy for all.

Router and updater follow an item table so, replicas a model. Whatever happens to the files, what
is in force stays in force until another version has been loaded whole:

* A version that is refused for its content (artifact.ArtifactError) is not tried again as long as
  its folder stays as it is. One that is still being copied is taken when it is whole.
* Any other failure (a disk that does not answer, no memory, a bug) says nothing about the version:
  it is tried again, as often as takes a tenth of the time.
* While nothing is in force the newest older version that holds stands in for a current one that is
  refused: a process that starts serves what one that was there before it serves.
* Each cause is told once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import structlog
from prometheus_client import Counter, Gauge

from models import artifact

log = structlog.get_logger()

SWAPS = Counter(
    "tandem_model_swaps_total",
    "Model versions taken up, refused or postponed, once for each cause: a refusal means that the"
    " last publish is broken (roll it back), a postponement that it could not be read yet.",
    ["model", "outcome"],
)
LOADED_AT = Gauge(
    "tandem_model_loaded_timestamp_seconds",
    "When the version in force was loaded; processes that differ for long have missed a publish.",
    ["model"],
)

Loaded = TypeVar("Loaded")

MIN_PAUSE_S = 1.0
WAITING = "nothing: waiting for a version"
PAUSE_PER_ATTEMPT = 10.0  # seconds without an attempt per second that the last one took


class _Failure(NamedTuple):
    """Why and until when a folder is left alone."""

    folder: Path
    content: object  # what the folder held when it was refused for it; None: for something else
    until: float  # on the monotonic clock


class CurrentVersion(Generic[Loaded]):
    """Use `loaded` for as long as one answer takes and no longer."""

    def __init__(
        self,
        artifacts_dir: Path,
        name: str,
        load: Callable[[Path], Loaded],
        *,
        what: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Loads nothing: `refresh` does. `load` gets a version's folder and verifies it; log lines
        call its result `what`."""
        self.name = name
        self._artifacts_dir = artifacts_dir
        self._load = load
        self._what = what
        self._monotonic = monotonic
        self._loaded: Loaded | None = None
        self._folder: Path | None = None  # what is loaded
        self._failure: _Failure | None = None
        self._told: set[str] = set()

    @property
    def in_force(self) -> bool:
        """Whether there is a version to use."""
        return self._loaded is not None

    @property
    def loaded(self) -> Loaded:
        """What is in force."""
        assert self._loaded is not None, f"nothing of {self.name} is in force yet"
        return self._loaded

    def refresh(self) -> bool:
        """Take up the current version if it is another; whether something has been taken up.

        Blocking; some 30 microseconds when nothing is new. Raises nothing.
        """
        before = self._folder
        try:
            folder = artifact.current(self._artifacts_dir, self.name)
            if folder == before:
                self._failure = None
                self._told.clear()
            elif not self._left_alone(folder):
                self._try(folder)
        except Exception as error:  # whatever the files hold, what is in force stays in force
            self._tell(error, "")
        return self._folder != before

    def _left_alone(self, folder: Path) -> bool:
        failure = self._failure
        if failure is None or failure.folder != folder:
            return False
        if self._monotonic() < failure.until:
            return True
        return failure.content is not None and failure.content == _content(folder)

    def _try(self, folder: Path) -> None:
        content, started = _content(folder), self._monotonic()
        error = self._take(folder)
        if error is None:
            self._failure = None
            self._told.clear()
            return
        refused = _for_content(error)
        if refused and not self.in_force:
            any(self._take(older) is None for older in artifact.older(folder))
        now = self._monotonic()
        self._failure = _Failure(
            folder,
            content if refused and self.in_force else None,
            now + max(MIN_PAUSE_S, PAUSE_PER_ATTEMPT * (now - started)),
        )

    def _take(self, folder: Path) -> Exception | None:
        """Put a version in force, or say why not."""
        try:
            loaded = self._load(folder)
        except Exception as error:  # whatever a broken version raises
            self._tell(error, folder.name)
            return error
        self._loaded, self._folder = loaded, folder
        SWAPS.labels(self.name, "taken").inc()
        LOADED_AT.labels(self.name).set_to_current_time()
        log.info(f"{self._what}_loaded", model=self.name, version=folder.name)
        return None

    def _tell(self, error: Exception, version: str) -> None:
        ours = isinstance(error, artifact.ArtifactError)
        sentence = str(error) if ours else f"{type(error).__name__}: {error}"
        if sentence in self._told:
            return
        self._told.add(sentence)
        outcome = "refused" if _for_content(error) else "postponed"
        SWAPS.labels(self.name, outcome).inc()
        log.error(
            f"{self._what}_{outcome}",
            model=self.name,
            version=version,
            error=sentence,
            in_force=self._folder.name if self._folder else WAITING,
            exc_info=None if ours or isinstance(error, OSError | MemoryError) else error,
        )


def _for_content(error: Exception) -> bool:
    """Whether it says something about the version, and not about this moment."""
    unreachable = isinstance(error, artifact.ArtifactUnreachable)
    return isinstance(error, artifact.ArtifactError) and not unreachable


def _content(folder: Path) -> object:
    """Something that changes whenever a file of the folder does, and costs no look into one."""
    try:
        with os.scandir(folder) as entries:
            stats = {entry.name: entry.stat() for entry in entries}
    except OSError as error:
        return error.errno
    return {name: (stat.st_size, stat.st_ctime_ns) for name, stat in stats.items()}
