"""What may run only once in a run_dir holds a lock there, which the kernel lets go of however the
holder dies."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class AlreadyRuns(Exception):
    """The run_dir has one already, or cannot hold its lock; the message says what to do."""


@contextlib.contextmanager
def alone(run_dir: Path, part: str) -> Iterator[None]:
    """The only `part` of this run_dir as long as the block runs; AlreadyRuns if there is one."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / f"{part}.lock").open("a")
    except OSError as error:
        raise AlreadyRuns(
            f"{part}: run_dir cannot be used ({error}): set TANDEM_RUN_DIR to a folder that can be"
            " written"
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRuns(
                f"{part}: one already runs in {run_dir}: end it or set TANDEM_RUN_DIR"
            ) from None
        yield
