"""`make demo`: the whole system on real data, from training to an experiment under traffic.

Trains and publishes the models, fills a feature store with the training period, starts every
service, replays held-out users as traffic and shows what happens; ends with checks of what the
visitors saw against what the services say. On the embedded parts (LMDB, the embedded log), or on a
Redis and a Kafka that are named and hold nothing yet; the other settings hold. What a run writes is
under run_dir; `run_dir/demo` (features, events, summary) is made anew by every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from feature_store.interface import FeatureStoreUnavailable
from load_tests.demo import models, table
from load_tests.demo.checks import Check, Evidence, all_hold, checks
from load_tests.demo.folder import (
    DemoError,
    Urls,
    check_log_empty,
    demo_folder,
    environment,
    with_stores,
)
from load_tests.demo.models import EXPERIMENTS, Arms, ModelsInvalid, following, with_own_experiments
from load_tests.demo.table import View
from load_tests.demo.training import TrainingFailed
from load_tests.demo.visitors import ArmKey, Simulator, Tally, TrafficConfig, Visitor, visitors
from load_tests.demo.watch import Watch
from models.artifact import ArtifactError
from models.data.errors import DataError
from services import installation
from services.common.processes.alone import AlreadyRuns
from services.common.processes.supervisor import Supervisor
from services.common.settings import Settings, SettingsInvalid
from services.common.telemetry import configure_logging
from services.experiments.declare.config import ExperimentsConfig
from services.experiments.declare.served import arm_models

if TYPE_CHECKING:
    from models.data.backfill import Interaction

READY_TIMEOUT_S = 300.0
SETTLE_TIMEOUT_S = 60.0  # for the workers to catch up when the traffic has ended
REFRESH_S = 1.0
LINE_EVERY_S = 5.0
ENVIRONMENT = "environment"  # in the demo's folder, for other commands on what it runs: `. FILE`

RETRIEVAL_HELP = "Retrieval model of both arms; given twice, that of control and of treatment."
STORE_HELP = "Keep features there instead of in LMDB, e.g. redis://127.0.0.1:6379/1; must be empty."
LOG_HELP = "Keep events there instead of on disk, e.g. kafka://127.0.0.1:9092; must be empty."
RANKING_HELP = "Ranking model of the treatment; given twice, that of control and of treatment."

console = Console()


# What a person can put right, told in one sentence instead of a trace.
EXPECTED = (
    DemoError,
    ArtifactError,
    DataError,
    ModelsInvalid,
    TrainingFailed,
    SettingsInvalid,
    AlreadyRuns,
    installation.CannotStart,
    installation.NotReady,
)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: unwind and leave nothing behind."""


def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="End after the checks; 0 if all held.")]
    = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train whatever is published.")]
    = False,
    retrieval_model: Annotated[list[str] | None, typer.Option(help=RETRIEVAL_HELP)]
    = None,
    ranking_model: Annotated[list[str] | None, typer.Option(help=RANKING_HELP)]
    = None,
    experiments: Annotated[Path, typer.Option(help="Experiments file to run.")]
    = EXPERIMENTS,
    visitor_count: Annotated[int, typer.Option("--visitors", min=1, help="Visits to make.")]
    = 6_000,
    rate: Annotated[float, typer.Option(min=0.1, help="Visits that begin per second.")] = 60.0,
    duration: Annotated[float, typer.Option(min=1, help="Let no visit begin after these seconds.")]
    = 600.0,
    feature_store: Annotated[str | None, typer.Option(help=STORE_HELP)] = None,
    event_log: Annotated[str | None, typer.Option(help=LOG_HELP)] = None,
) -> None:  # fmt: skip
    """Train, serve and measure an experiment on real data; Ctrl-C ends it at any point.

    The experiments are those of load_tests/demo/experiments.yaml or of --experiments; models given
    by the options take the place of those in its first one (`tandem train models` lists them).
    """
    _on_signal(_interrupt)
    try:
        given = following(Settings.load(), experiments)
        arms = models.chosen(given, retrieval_model or (), ranking_model or ())
        traffic = TrafficConfig(visits_per_s=rate)
        urls = Urls(feature_store, event_log)
        held = _run(given, arms, urls, exit_, retrain, visitor_count, traffic, duration)
    except Interrupted:
        console.print("\nInterrupted; everything has ended.")
        raise typer.Exit(130) from None
    except EXPECTED as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if held else 1)


def _on_signal(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted


def _run(
    given: Settings,
    arms: Arms | None,
    urls: Urls,
    exit_: bool,
    retrain: bool,
    visitor_count: int,
    traffic: TrafficConfig,
    duration_s: float,
) -> bool:
    """The demo from beginning to end; whether all checks held."""
    installation.check_ports(given)  # before minutes are spent on training
    if arms is None:
        installation.check_experiments(given)
    with demo_folder(given.run_dir) as folder:
        chosen = given if arms is None else with_own_experiments(given, arms, folder)
        settings = with_stores(chosen, folder, urls)
        check_log_empty(settings)
        experiments = installation.check_experiments(settings)
        _log_to(settings)
        futures, shift_ms = _prepare(settings, retrain)
        used = environment(settings)
        (folder / ENVIRONMENT).touch(mode=0o600)  # a URL may hold a password
        (folder / ENVIRONMENT).write_text(
            "".join(f"export {name}={shlex.quote(value)}\n" for name, value in used.items())
        )
        processes = installation.supervisor(settings, used)
        try:
            _start(settings, processes)
            coming = visitors(futures, visitor_count)
            view = View(Tally(), len(coming), models=arm_models(experiments))
            evidence = asyncio.run(
                _traffic(settings, processes, coming, traffic, duration_s, view, experiments)
            )
            results = checks(evidence, experiments)
            _write_summary(folder / "summary.json", results, evidence, shift_ms, view)
            console.print()
            console.print(table.summary(results))
            _report(view, experiments, folder / "reports")
            held = all_hold(results)
            if not exit_:
                _serve(held, folder / ENVIRONMENT)
        except asyncio.CancelledError:
            raise Interrupted from None
        finally:
            _on_signal(signal.SIG_IGN)  # nothing interrupts the ending
            with console.status("ending all processes"):
                processes.stop()
    return held


def _log_to(settings: Settings) -> None:
    """Our own log events go beside those of the services, not across the table."""
    folder = settings.run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    configure_logging(settings.telemetry.log_level, "json")
    file = (folder / "demo.log").open("a")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file))


def _prepare(settings: Settings, retrain: bool) -> tuple[dict[str, list[Interaction]], int]:
    """Models and feature store; what the held-out users really did, and the shift to now (ms)."""
    with console.status("loading the data"):
        from load_tests.demo.data import backfill, train_or_reuse  # torch takes its time
        from models.data.backfill import future_interactions, initial_state, shift_to
        from models.data.worlds.films import dataset as films
        from services.feedback.backfill import NotEmpty
        from services.first_start import first_items

        dataset = films.load()
    console.print(
        f"[bold]{dataset.name}[/]: {len(dataset.train):,} ratings to train on, then"
        f" {len(dataset.test):,} by {dataset.test['user_id'].n_unique()} users are held out",
        highlight=False,
    )
    train_or_reuse(settings, dataset, retrain, console)
    first_items(settings, lambda line: console.print(line, highlight=False))
    started = time.monotonic()
    shift_ms = shift_to(dataset, time.time_ns() // 1_000_000)
    with console.status("filling the feature store"):
        state = initial_state(dataset, shift_ms)
        try:
            written = backfill(settings, dataset.items, state)
        except (FeatureStoreUnavailable, ValueError) as error:  # down, or a URL that is none
            raise DemoError(str(error)) from None
        except NotEmpty:
            raise DemoError(
                "the feature store holds rows already: empty it (redis-cli FLUSHDB), or name"
                " another database"
            ) from None
    console.print(
        f"Feature store: {written:,} users and items as of the split, which is now"
        f" ({time.monotonic() - started:.0f} s)",
        highlight=False,
    )
    return future_interactions(dataset, shift_ms), shift_ms


def _start(settings: Settings, processes: Supervisor) -> None:
    """Start every process and wait until all of them answer."""
    installation.check_ports(settings)
    started = time.monotonic()
    with console.status("starting the services") as status:
        processes.start()
        installation.wait_ready(
            settings,
            processes,
            READY_TIMEOUT_S,
            lambda missing: status.update(f"waiting for {', '.join(missing)}"),
        )
    console.print(f"All services answer ({time.monotonic() - started:.0f} s):", highlight=False)
    grpc_of = installation.endpoints(settings)
    for role, metrics in installation.metrics_endpoints(settings).items():
        listens = f"gRPC {' '.join(grpc_of[role])}" if role in grpc_of else ""
        scraped = " ".join(f"http://{address}/metrics" for address in metrics)
        console.print(f"  {role:<21}{listens:<22} {scraped}", highlight=False)
    console.print()


async def _traffic(
    settings: Settings,
    processes: Supervisor,
    coming: list[Visitor],
    traffic: TrafficConfig,
    duration_s: float,
    view: View,
    experiments: ExperimentsConfig,
) -> Evidence:
    """Let the visitors come, show it, and wait until the workers have caught up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    # An exception out of a signal handler could end in any callback; a cancelled task cannot.
    _on_signal(lambda number, frame: loop.call_soon_threadsafe(task.cancel))
    address = installation.endpoints(settings)["router"][0]
    simulator = Simulator(address, traffic, view.tally)
    watch = Watch(settings, view, processes, experiments)
    settled = asyncio.Event()
    showing = asyncio.create_task(_show(watch, settled))
    over = asyncio.Event()

    def wait_no_more(_: object) -> None:
        over.set()
        settled.set()

    showing.add_done_callback(wait_no_more)  # if it broke, awaiting it below says why
    try:
        loop.call_later(duration_s, over.set)
        await simulator.run(coming, over)
        if not showing.done():
            settled.clear()
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            await settled.wait()
    except TimeoutError:
        pass  # the checks say what is missing
    finally:
        showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing
        await simulator.close()
        _on_signal(_interrupt)
    evidence = watch.evidence()
    if not console.is_terminal:
        console.print(table.line(watch.view), highlight=False, soft_wrap=True)
    return evidence


async def _show(watch: Watch, settled: asyncio.Event) -> None:
    """The live table, or on anything but a terminal a line now and then.

    `settled` is set whenever the workers have caught up with the visitors.
    """
    next_line = 0.0
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            await asyncio.to_thread(watch.look)
            (settled.set if watch.settled() else settled.clear)()
            view = watch.view
            if live:
                live.update(table.table(view, console.height), refresh=True)
            elif view.seconds >= next_line:
                next_line = view.seconds + LINE_EVERY_S
                console.print(table.line(view), highlight=False, soft_wrap=True)
            await asyncio.sleep(REFRESH_S)


def _report(view: View, experiments: ExperimentsConfig, folder: Path) -> None:
    """Write each experiment's page, and say what the worker knew of it when the traffic ended."""
    from services.experiments.act.standing import report_of
    from services.experiments.report.html.page import page

    folder.mkdir()
    console.print("\n[bold]Experiments[/]")
    for layer, experiment in experiments.experiments():
        found = view.experiments.get(experiment.name)
        if found is None:
            continue
        said = report_of(layer.name, experiment, found.standing, found.as_of_ms, found.coverage)
        file = folder / f"{experiment.name}.html"
        file.write_text(page(said), encoding="utf-8")
        sentences = [goal.sentence for goal in said.goals if goal.role == "primary"]
        sentences += [guardrail.sentence for guardrail in said.guardrails]
        sentences += [said.preference.sentence] if said.preference else []
        sentences += [said.ramp.waits_for] if said.ramp and said.ramp.waits_for else []
        console.print(f"{experiment.name}: {file}", highlight=False, soft_wrap=True)
        for sentence in sentences:
            console.print(f"  [dim]{escape(sentence)}[/]", highlight=False)


def _write_summary(
    path: Path, results: list[Check], evidence: Evidence, shift_ms: int, view: View
) -> None:
    """The result for programs; `shift_ms` lies between the data's clock and the store's."""
    tally = evidence.tally
    models = {ArmKey(a.layer, a.experiment, a.arm): a.models for a in view.models}
    document = {
        "shift_ms": shift_ms,
        "checks": [vars(check) for check in results],
        "requests": tally.requests,
        "answered": tally.answers["OK"],
        "degraded": tally.degraded,
        "events": tally.events,
        "applied": evidence.applied,
        "follow_ups": tally.follow_ups,
        "visible_at_once": tally.visible_at_once,
        "never_visible": tally.never_visible,
        "shown_again": tally.shown_again,
        "visible_delays_s": sorted(tally.visible_delays_s),
        "arms": [
            {**key._asdict(), "models": models.get(key), **n}
            for key, n in sorted(tally.arms.items())
        ],
    }
    path.write_text(json.dumps(document, indent=1))


def _serve(held: bool, environment: Path) -> None:
    """Keep everything running until a signal, which here is the expected end."""
    verdict = "[green]All checks held.[/]" if held else "[bold red]Not all checks held.[/]"
    console.print(
        f"\n{verdict} Still serving; ask from a second terminal:\n\n"
        "  .venv/bin/tandem recommend --user 42\n"
        f"  (. {environment}; .venv/bin/tandem experiments audit)\n\n"
        "Ctrl-C ends everything.",
        highlight=False,
    )
    with contextlib.suppress(Interrupted):
        signal.pause()


if __name__ == "__main__":
    typer.run(demo)
