"""Trains the demo's models side by side: one process per model, as many at once as there are cores.

A training runs on one thread (`models/training/pipeline.py` says why), so the second core is for
the second model. Each process writes to a pipe as it would to a terminal, and what is shown of it
is its current line. `python -m load_tests.demo.training PART MODEL FOLDER` is such a process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from services.common.processes.supervisor import SUPERVISOR, end_with_supervisor

if TYPE_CHECKING:
    from models.registry import Part  # torch takes its time

LOOK_EVERY_S = 0.2
MIN_LINE = 60  # columns that a progress bar needs
# Without EASE, which takes 23 s of a core here; `tandem train retrieval` has it, too.
BASELINES = ("popularity", "markov", "item_knn")


class Wanted(NamedTuple):
    """A model to be trained."""

    part: Part
    name: str


class TrainingFailed(Exception):
    """A training ended without a published model; the message has its last words."""


def train(wanted: Sequence[Wanted], artifacts_dir: Path, console: Console) -> float:
    """Train and publish the models on the bundled data set; the seconds it took.

    Raises TrainingFailed; whatever ends this function, no process of it is left.
    """
    started = time.monotonic()
    waiting, running = list(wanted), dict[Wanted, _Training]()
    with _stopped(running), Live(console=console, transient=True, auto_refresh=False) as live:
        while waiting or running:
            while waiting and len(running) < cores():
                model = waiting.pop(0)
                running[model] = _Training(model, artifacts_dir, console)
            for model, training in list(running.items()):
                if (code := training.poll()) is not None:
                    training.finish()
                    del running[model]
                    if code:
                        raise TrainingFailed(
                            f"training {model.name} ended with exit code {code}: {training.tail()}"
                        )
                    console.print(
                        f"{model.name}: trained in {training.seconds:.0f} s"
                        f" ({training.cpu_s:.0f} s of CPU time)",
                        highlight=False,
                    )
            if console.is_terminal:
                lines = [training.line() for training in running.values()]
                later = [Text(f"{model.name}: waits for a core", "dim") for model in waiting]
                live.update(Group(*lines, *later), refresh=True)
            time.sleep(LOOK_EVERY_S)
    return time.monotonic() - started


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def _stopped(running: dict[Wanted, _Training]) -> Iterator[None]:
    """Ends what still runs when the block is left."""
    try:
        yield
    finally:
        for training in running.values():
            training.process.terminate()
        for training in running.values():
            training.finish()


class _Training:
    """A training process and what it has written."""

    def __init__(self, model: Wanted, artifacts_dir: Path, console: Console) -> None:
        width = max(console.width, MIN_LINE)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "load_tests.demo.training", *model, str(artifacts_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, SUPERVISOR: str(os.getpid()), "COLUMNS": str(width)},
            start_new_session=True,  # a terminal's Ctrl-C reaches the demo, which ends this one
        )
        self.cpu_s = 0.0
        self._name = model.name
        self._started = time.monotonic()
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def poll(self) -> int | None:
        """The exit code once it has ended; then `cpu_s` is the CPU time that it took."""
        before = os.times()
        code = self.process.poll()
        after = os.times()  # an ended child's time is ours from the moment it is waited for
        self.cpu_s = sum(after[2:4]) - sum(before[2:4])
        return code

    def finish(self) -> None:
        """Wait for the end of the process and of its output."""
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def line(self) -> Text:
        """Its current line, as it would stand in a terminal."""
        return last_line(self._written.decode(errors="replace")) or Text(
            f"{self._name}: replays the data, measures the baselines", "dim"
        )

    def tail(self) -> str:
        """Its last words, in one line."""
        lines = Text.from_ansi(self._written.decode(errors="replace")).plain.split("\n")
        return " ".join(" ".join(lines[-5:]).split())

    def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := os.read(self.process.stdout.fileno(), 65_536):
            self._written = (self._written + chunk)[-65_536:]


def last_line(written: str) -> Text | None:
    """The last line with text in it, of output made for a terminal; None without one."""
    lines = [Text.from_ansi(line) for line in written.split("\n")[-10:]]
    return next((line for line in reversed(lines) if line.plain.strip()), None)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(part: Part, name: str, artifacts_dir: Path) -> None:
    """Train one model; its progress goes to stdout, as if that were a terminal."""
    end_with_supervisor()
    signal.signal(signal.SIGTERM, _exit)
    from models.artifact import ArtifactError
    from models.data.errors import DataError
    from models.data.worlds.films import dataset as films
    from models.registry import UnknownModel
    from models.training.loop import TrainingError
    from models.training.pipeline import train_all

    console = Console(force_terminal=True, width=int(os.environ["COLUMNS"]))
    try:
        train_all(
            artifacts_dir,
            console,
            dataset=films.load(),
            parts=(part,),
            retrieval_models=(name,),
            ranking_models=(name,),
            baselines=BASELINES,
        )
    except (ArtifactError, DataError, TrainingError, UnknownModel) as error:
        print(error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))  # type: ignore[arg-type]
