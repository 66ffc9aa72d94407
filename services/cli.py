"""`tandem`: one command for every person who works with the system."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from models.cli import app as train
from models.data.cli import app as data
from models.data.import_cli import app as import_
from models.research.evaluate_cli import evaluate
from services.ask_cli import feedback, recommend
from services.common.schema import SchemaRefused, schema_of
from services.common.settings import Settings
from services.common.terminal import fail, load_settings, plain, say
from services.experiments.cli.experiments import app as experiments
from services.feedback.cli import app as features
from services.items_cli import app as items
from services.schema_cli import app as schema

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a role's log wants a plain trace
    help="Tandem: real-time recommendations with experiments built in.",
)
app.add_typer(train, name="train")
app.add_typer(data, name="data")
app.add_typer(import_, name="import")
app.add_typer(schema, name="schema")
app.add_typer(experiments, name="experiments")
app.add_typer(features, name="features")
app.add_typer(items, name="items")
app.command()(evaluate)
app.command()(recommend)
app.command()(feedback)
console = Console()

READY_S = 180.0  # `tandem serve` says after this long, again and again, what does not answer

Role = Literal[
    "all",
    "router",
    "replicas",
    "candidate_generation",
    "ranking",
    "updater",
    "experiments",
    "catalogue",
]


@app.command()
def serve(
    role: Annotated[Role, typer.Argument(help="which part to run")] = "all",
    local: Annotated[
        bool, typer.Option("--local", help="all, without Ray: a process for each replica")
    ] = False,
) -> None:
    """Run the services on this machine (all, or one role) until SIGTERM or Ctrl-C.

    `replicas` hosts those of both model services on Ray; `ranking` and `candidate_generation` are
    one replica each, without it.
    """
    from services.common.processes.supervisor import end_with_supervisor

    if role != "all":
        if local:
            fail(
                "--local is for all roles at once: one replica without Ray is `tandem serve"
                " ranking` or `tandem serve candidate_generation`"
            )
        end_with_supervisor()
    settings = load_settings()
    from services.common.telemetry import configure_logging

    os.umask(0o077)  # who clicked what is no other user's business
    configure_logging(settings.telemetry.log_level, settings.telemetry.log_format)
    if role == "all":
        _serve_all(settings, local)
    else:
        _serve_role(role, settings)


def _serve_role(role: str, settings: Settings) -> None:
    """Run one role; when it fails, the last line of its log is the cause."""
    import structlog

    from services.common.processes.alone import alone
    from services.common.processes.ray_cluster import ClusterLost
    from services.installation import EXPECTED, check_experiments, check_ports

    try:
        check_ports(settings, [role])
        match role:
            case "router":
                import uvloop

                from services.router.main import run_router

                check_experiments(settings)
                uvloop.run(run_router(settings))
            case "replicas":
                from services.common.processes.hosting import run_replicas

                run_replicas(settings)
            case "candidate_generation" | "ranking":
                import uvloop

                from services.common.processes.replica import run_replica

                uvloop.run(run_replica(role, settings))
            case "catalogue":
                from services.catalogue.main import run_catalogue

                asyncio.run(run_catalogue(settings))
            case "updater":
                from services.feedback.updater import run_updater

                run_updater(settings, threading.Event())
            case "experiments":
                from services.experiments.act.worker import run_worker

                with alone(settings.run_dir, role):
                    run_worker(settings, threading.Event())
    except EXPECTED as error:
        fail(str(error))
    except Exception as error:
        if not isinstance(error, ClusterLost):
            structlog.get_logger().exception("role_failed", role=role)
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"[bold red]error:[/] {role} ended: {plain(cause)}")
        # What is torn down on the way out may have something to say, which is not the cause; and
        # Ray's own way out hangs when its cluster is gone.
        sys.stdout.flush()
        os._exit(1)


def _raise_exit(number: int, frame: object) -> None:
    """Unwind the main thread once; while it cleans up, further signals are ignored."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(0)


def _serve_all(settings: Settings, local: bool) -> None:
    from services import first_start, installation
    from services.common.processes.alone import alone
    from services.common.settings import RaySettings

    if local:  # whatever cluster they name is not asked for
        settings = settings.model_copy(update={"ray": RaySettings()})

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_exit)
    with contextlib.ExitStack() as opened:
        try:
            first_start.check_folder(settings)
            installation.check_experiments(settings)
            if ignored := schema_of(settings).declaration.not_obeyed:
                say(f"[bold yellow]not obeyed so far:[/] {', '.join(ignored)} of schema.yaml")
            opened.enter_context(alone(settings.run_dir, installation.ALL))
            first_start.first_models(settings, say)
            first_start.first_items(settings, say)
            installation.check_models(settings)
            installation.check_ports(settings)
            first_start.first_features(settings, say)
            installation.check_source(settings)
        except first_start.EXPECTED as error:
            fail(str(error))
        processes = installation.supervisor(settings, {}, local=local)
        opened.callback(processes.stop)
        processes.start()
        while True:
            try:
                installation.wait_ready(settings, processes, READY_S)
                break
            except installation.NotReady as error:  # what answers goes on, the rest is tried again
                say(f"[bold yellow]degraded:[/] {plain(str(error))}")
        with contextlib.suppress(OSError):  # said to a full disk, as the rest
            _print_endpoints(settings)
        signal.pause()


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="a new folder")]) -> None:
    """Write a small domain to begin from: schema, settings, experiments, and example files."""
    from models.data.errors import DataError
    from models.data.worlds.recipes import example

    try:
        files = example.write(folder)
    except (DataError, OSError) as error:
        fail(str(error))
    console.print(f"{folder}: {', '.join(file.name for file in files)}")
    console.print(
        "There, with `tandem` as you called it here: `tandem import items items.csv`, `import"
        " users users.csv`, `import events events.csv`; `tandem train all`; `tandem"
        " serve --local`; `tandem recommend --user u7`."
    )


@app.command()
def scale(
    service: Annotated[Literal["candidate_generation", "ranking"], typer.Argument()],
    replicas: Annotated[int, typer.Argument(min=1)],
) -> None:
    """Change the number of replicas of a running service; no request fails."""
    settings = load_settings()
    from services.common.processes import hosting  # before ray
    from services.common.processes.ray_cluster import running_cluster
    from services.common.telemetry import configure_logging

    configure_logging("warning", "console")
    with running_cluster(settings) as running:
        hosting.deploy(service, running, replicas)
    console.print(f"{service}: {replicas} replica(s)")


@app.command()
def status() -> None:
    """Where every part listens, whether it is healthy, and what it last said if it is not; and what
    the experiments' worker has counted of every arm."""
    settings = load_settings()
    _print_endpoints(settings)
    _print_arms(settings)
    from services.installation import missing_parts, why_missing

    if missing := missing_parts(settings):
        fail(
            f"not healthy: {', '.join(missing)}; last in the logs:{why_missing(settings, missing)}"
        )


def _print_endpoints(settings: Settings) -> None:
    from services.installation import endpoints, metrics_endpoints

    table = Table(title="Tandem")
    for column in ("part", "gRPC", "metrics"):
        table.add_column(column, overflow="fold")  # addresses are there to be copied
    grpc_of = endpoints(settings)
    for role, metrics in metrics_endpoints(settings).items():
        table.add_row(
            role,
            " ".join(grpc_of.get(role, [])) or "-",
            " ".join(f"http://{m}/metrics" for m in metrics) or "-",
        )
    console.print(table)


def _print_arms(settings: Settings) -> None:
    """Nothing where the worker runs elsewhere, or has not measured yet."""
    from services.experiments.act.snapshot import SNAPSHOT, fresh_in, read
    from services.experiments.declare import config_reader
    from services.experiments.declare.config import ExperimentsError
    from services.experiments.declare.domain import domain_of

    try:
        domain = domain_of(schema_of(settings).declaration)
        config = config_reader.load(settings.router.experiments_file, domain)
    except SchemaRefused as error:
        say(f"[bold yellow]no arms:[/] {plain(str(error))}")
        return
    except (ExperimentsError, OSError):
        say(
            f"[bold yellow]{plain(str(settings.router.experiments_file))} cannot be used[/]: a"
            " router that runs keeps what it had; `tandem experiments validate` says why"
        )
        return
    table = Table("experiment", "arm", title="Experiments")
    events = [event.name for event in domain.events.declared]
    for count in ("units", "requests", "degraded", *events):
        table.add_column(count, justify="right")
    source, now_ms = settings.event_log.url, time.time() * 1000
    content = read(settings.run_dir / SNAPSHOT)
    for _, experiment in config.experiments():
        found = fresh_in(content, experiment, source, now_ms)
        for arm, counts in found.standing.measured.arms.items() if found else ():
            numbers = counts.units, counts.requests, counts.degraded
            of_events = [counts.events.get(event, 0) for event in events]
            table.add_row(experiment.name, arm, *(f"{n:,}" for n in (*numbers, *of_events)))
    if table.row_count:
        console.print(table)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(app())
