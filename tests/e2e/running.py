"""The demo and `tandem serve` as processes of their own: started with free ports, watched, and
looked for afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import psutil

from load_tests.serving.feeding import feed
from services.common.settings import EventLogSettings, Settings
from tests.artifacts import publish_small, small_items

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0  # for anything: a busy machine starts Ray slowly
OWN = "TANDEM_RUN_DIR"  # every process of an installation has it in its environment


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value; AssertionError if it does not come."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)  # between two looks: the others need the cores
    return value


class Background:
    """What goes on beside a test that waits for conditions."""

    _going: asyncio.Task[None]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Go on until something holds; AssertionError when it does not come."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert not self._going.done(), f"the traffic ended before {what}"
                await asyncio.sleep(0.05)  # between two looks


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def owned(run_dir: Path) -> Iterator[psutil.Process]:
    """Every process of the installation in `run_dir`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(OWN) == str(run_dir):
                yield process


class Demo:
    """`python -m load_tests.demo` with a run_dir and ports of its own; output in demo.txt."""

    def __init__(self, folder: Path, artifacts: Path, *arguments: str, **settings: str) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.ports = free_ports(len(PORTS))
        self.environment = {
            **os.environ,
            OWN: str(self.run_dir),
            "TANDEM_ARTIFACTS_DIR": str(artifacts),
            **{f"TANDEM_{k}": str(v) for k, v in zip(PORTS, self.ports, strict=True)},
            **settings,
        }
        self._output: IO[bytes] = (folder / "demo.txt").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "load_tests.demo", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def settings(self) -> Settings:
        """What the demo's services run with."""
        router, metrics, updater, experiments, catalogue, its_metrics = self.ports
        return Settings(
            run_dir=self.run_dir,
            artifacts_dir=Path(self.environment["TANDEM_ARTIFACTS_DIR"]),
            router={"port": router, "metrics_port": metrics},  # type: ignore[arg-type]
            feedback={"updater_metrics_port": updater},  # type: ignore[arg-type]
            experiments={"metrics_port": experiments},  # type: ignore[arg-type]
            catalogue={  # type: ignore[arg-type]
                "port": catalogue,
                "metrics_port": its_metrics,
                "folder": self.run_dir / "demo" / "catalogue",
            },
            feature_store={"url": f"lmdb://{self.run_dir}/demo/features"},  # type: ignore[arg-type]
            event_log={"url": f"log://{self.run_dir}/demo/events"},  # type: ignore[arg-type]
        )

    def output(self) -> str:
        """Everything printed so far, in one line: where it breaks depends on the width."""
        return " ".join((self.folder / "demo.txt").read_text().split())

    def wait_for(self, text: str) -> None:
        """Until the output has `text`; AssertionError with the output if the demo ends before."""

        def there() -> bool:
            ended = self.process.poll() is not None
            found = text in self.output()
            assert found or not ended, f"ended before {text!r}:\n{self.output()}"
            return found

        wait_until(there, f"{text!r} in {self.folder / 'demo.txt'}")

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def tandem(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `tandem` command in another process, as from a second terminal."""
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this demo, Ray's daemons included."""
        return list(owned(self.run_dir))

    def role(self, role: str) -> psutil.Process | None:
        """The process of a role, e.g. "updater", while there is one."""
        for process in owned(self.run_dir):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[-2:] == ["serve", role]:
                    return process
        return None

    def raylets(self) -> list[psutil.Process]:
        """Ray's node processes, one per cluster."""
        return self._named("raylet")

    def daemon(self, name: str) -> psutil.Process:
        """The only process of this name."""
        (found,) = self._named(name)
        return found

    def _named(self, name: str) -> list[psutil.Process]:
        found = []
        for process in owned(self.run_dir):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    found.append(process)
        return found

    def free_of_ports(self) -> bool:
        """Whether all its ports can be taken again."""
        for port in self.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    return False
        return True

    def assert_nothing_left(self) -> None:
        """No process and no port, at the latest when the dying have died."""
        try:
            wait_until(lambda: not self.processes(), "the end of all processes", 90)
        except AssertionError as error:
            left = [f"{p.pid} {p.status()} {' '.join(p.cmdline())[:200]}" for p in self.processes()]
            raise AssertionError(f"{error}; left: {left}") from None
        assert self.free_of_ports()

    def clean_up(self) -> None:
        """Whatever a failed test has left."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._output.close()


PORTS = ("ROUTER__PORT", "ROUTER__METRICS_PORT", "FEEDBACK__UPDATER_METRICS_PORT",
         "EXPERIMENTS__METRICS_PORT", "CATALOGUE__PORT", "CATALOGUE__METRICS_PORT")  # fmt: skip
# As `tandem serve` is, but impatient to say what is missing.
SERVE = "import sys; from services import cli; cli.READY_S = 0.5; cli.app(['serve', *sys.argv[1:]])"


class Serve:
    """`tandem serve` with these arguments, small models and a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        publish_small(folder / "artifacts")
        log = EventLogSettings(url=f"log://{folder}/events")
        feed(Settings(run_dir=folder / "run", event_log=log), small_items())
        (folder / "experiments.yaml").write_text("version: 1\nlayers: []\n")
        self.run_dir = folder / "run"
        ports = free_ports(len(PORTS))
        self.address = f"127.0.0.1:{ports[0]}"
        environment = os.environ | {
            OWN: str(self.run_dir),
            "TANDEM_ARTIFACTS_DIR": str(folder / "artifacts"),
            "TANDEM_FEATURE_STORE__URL": f"lmdb://{folder}/features",
            "TANDEM_EVENT_LOG__URL": f"log://{folder}/events",
            "TANDEM_ROUTER__EXPERIMENTS_FILE": str(folder / "experiments.yaml"),
            "TMPDIR": str(folder),
            **{f"TANDEM_{k}": str(v) for k, v in zip(PORTS, ports, strict=True)},
            **settings,
        }
        self.output = folder / "serve.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, *arguments], cwd=ROOT, env=environment, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        return list(owned(self.run_dir))

    def clean_up(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
