"""`tandem`: one command for every person who works with the system."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import grpc
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from models.cli import app as train
from models.data.cli import app as data
from models.data.import_cli import app as import_
from models.research.evaluate_cli import evaluate
from models.schema.declaration import Field
from services.common.schema import SchemaRefused, schema_of
from services.common.settings import Settings
from services.common.terminal import fail, load_settings, plain, say
from services.experiments.cli.experiments import app as experiments
from services.feedback.cli import app as features
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
app.command()(evaluate)
console = Console()

MAX_TABLE_WIDTH = 110
TITLED_DATASET = "ml-latest-small"  # the one whose titles a checkout has

READY_S = 180.0  # `tandem serve` says after this long, again and again, what does not answer

Role = Literal[
    "all", "router", "replicas", "candidate_generation", "ranking", "updater", "experiments"
]


def _ask(method: str, request: object, timeout_s: float, address: str | None) -> Any:
    """The answer of the router; a command ends where there is none."""
    from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
    from services.common.channels import CLIENT_OPTIONS, joined
    from services.first_start import what_to_bring
    from services.installation import endpoints

    missing = ""
    if address is None:
        settings = load_settings()
        found = endpoints(settings)["router"]
        address = found[0] if found else joined(settings.router.host, settings.router.port)
        if not found:
            missing = what_to_bring(settings) or (
                f"nothing is served from {settings.run_dir.resolve()}: `tandem serve` in another"
                " terminal first, or name a router with --address"
            )
    with grpc.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
        try:
            return getattr(RecommenderStub(channel), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
            fail((unavailable and missing) or f"{error.code().name}: {error.details()}")


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
            opened.enter_context(alone(settings.run_dir, installation.ALL))
            first_start.first_models(settings, say)
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
        " users users.csv`, `import events events.csv`; `tandem train all --data .`; `tandem"
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
    except (ExperimentsError, SchemaRefused, OSError):
        return  # `tandem experiments validate` says what is wrong with it
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


@app.command()
def recommend(
    user: Annotated[str, typer.Option(help="user id")],
    surface: Annotated[str, typer.Option(help="where the list is shown")] = "home",
    items: Annotated[int, typer.Option(help="length of the list")] = 10,
    context: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the request, as schema.yaml has it")
    ] = None,
    address: Annotated[str | None, typer.Option(help="host:port of the router")] = None,
) -> None:
    """Ask for a list and print it with its reasons: source, scores, features' ages, arm."""
    from protos.tandem.v1.recommender_pb2 import RecommendRequest

    settings = load_settings()
    declared = schema_of(settings).declaration.context
    numbers, texts = _sent(declared, context or (), "--context")
    request = RecommendRequest(
        user_id=user, surface=surface, num_items=items, explain=True,
        context=numbers, context_text=texts,
    )  # fmt: skip
    _print_recommendations(_ask("Recommend", request, 5.0, address), _titles(settings))


def _sent(
    fields: Iterable[Field], given: Sequence[str], option: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Numbers and texts of NAME=VALUE: texts are those of declared categories and texts."""
    from models.nearest import nearest
    from services.common.validate import TEXTS

    declared = {field.name: field.type for field in fields}
    numbers, texts = dict[str, float](), dict[str, str]()
    for each in given:
        name, equals, value = each.partition("=")
        if declared.get(name) in TEXTS:
            texts[name] = value
            continue
        try:
            numbers[name] = float({"true": "1", "false": "0"}.get(value, value))
        except ValueError:
            if not equals:
                said = f"write {each!r} as NAME=VALUE"
            elif name in declared:
                said = (
                    f"{name} is a {declared[name]} in schema.yaml, and {value!r} is neither a"
                    " number nor true or false"
                )
            else:
                said = (
                    f"schema.yaml declares no {name} here{nearest(name, declared)}, and what is not"
                    f" declared can only be a number, true or false: {value!r} is none of them"
                )
            raise typer.BadParameter(said, param_hint=option) from None
    return numbers, texts


def _titles(settings: Settings) -> dict[str, str]:
    """Film titles, where what is served was trained on the checkout's data set; else none."""
    from models import artifact
    from models.data.errors import DataError
    from models.data.worlds.films import movielens

    try:
        version = artifact.current(settings.artifacts_dir, settings.candidate_generation.models[0])
        window = json.loads((version / artifact.DATA_WINDOW).read_text())
        return movielens.titles() if window.get("dataset") == TITLED_DATASET else {}
    except (artifact.ArtifactError, DataError, FileNotFoundError):
        return {}  # the services run elsewhere, or this is no checkout


def _print_recommendations(response: object, titles: dict[str, str]) -> None:
    from protos.tandem.v1.recommender_pb2 import RecommendResponse
    from protos.tandem.v1.records_pb2 import Degradation
    from services.router.metrics import STAGES

    assert isinstance(response, RecommendResponse)
    tasks = sorted({task for item in response.items for task in item.reason.task_scores})
    width = min(console.width, MAX_TABLE_WIDTH)
    table = Table(
        title=plain(f"request {response.request_id}"),
        box=box.SIMPLE_HEAD,
        width=width,
        collapse_padding=True,
    )
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("item", no_wrap=True)
    if titles:
        table.add_column("title", no_wrap=True, ratio=1)
    table.add_column("source", no_wrap=True)  # and which of the user's interests found it
    both = response.interleaving
    by = [both.arm_b if team else both.arm_a for team in both.teams]  # empty: of one ranking
    if by:
        table.add_column("by", no_wrap=True)
    for column in ("match", *tasks, "score"):
        table.add_column(column, justify="right", no_wrap=True)
    for place, item in enumerate(response.items, 1):
        reason = item.reason
        table.add_row(
            str(place),
            plain(item.item_id),
            *([plain(titles.get(item.item_id, ""))] if titles else []),
            plain(f"{reason.source}/{reason.interest_index}"),
            *map(plain, by[place - 1 : place]),
            f"{reason.retrieval_score:.3f}",
            *("unknown" if reason.unknown_to_ranking
              else f"{reason.task_scores[task]:.3f}" if task in reason.task_scores else "-"
              for task in tasks),
            f"{item.score:.3f}",
        )  # fmt: skip
    console.print(table)
    why = response.explanation
    arms = [
        f"{a.layer}/{a.experiment}={a.arm}"
        + (" (by the allow-list, or its own arm is stopped)" if a.overridden else "")
        + (" (no exposure)" if a.unread else "")
        for a in response.assignments
    ]
    lines = {
        "arms": ", ".join(arms) or "none",
        "degradations": ", ".join(Degradation.Name(d).lower() for d in response.degradations)
        or "none",
        "feature ages": ", ".join(
            f"{group} {_age(age)}" for group, age in sorted(why.feature_age_s.items())
        ),
        "candidates": f"{why.retrieved} retrieved, {why.filtered} filtered out",
        "models": ", ".join(f"{s} {v}" for s, v in sorted(why.model_versions.items())) or "none",
        "stages": ", ".join(f"{s} {why.stage_ms[s]:.1f} ms" for s in STAGES if s in why.stage_ms),
        "parameters": ", ".join(f"{n}={v}" for n, v in sorted(why.parameters.items())),
    }
    for name, line in lines.items():
        console.print(f"[bold]{name}[/]: {plain(line)}", highlight=False)


def _age(seconds: float) -> str:
    if seconds < 0:
        return "missing (defaults)"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


@app.command()
def feedback(
    user: Annotated[str, typer.Option(help="user id")],
    item: Annotated[str, typer.Option(help="item id")],
    event: Annotated[str, typer.Option(help="name of the event, as schema.yaml has it")],
    value: Annotated[float, typer.Option(help="what came with it: a price, seconds")] = 0.0,
    property_: Annotated[
        list[str] | None,
        typer.Option("--property", help="NAME=VALUE of the event, as schema.yaml has it"),
    ] = None,
    request_id: Annotated[str, typer.Option(help="of the list it belongs to")] = "",
    address: Annotated[str | None, typer.Option(help="host:port of the router")] = None,
) -> None:
    """Record one feedback event that happens now."""
    from protos.tandem.v1.recommender_pb2 import RecordFeedbackRequest
    from protos.tandem.v1.records_pb2 import FeedbackEvent

    kind = schema_of(load_settings()).declaration.event.get(event)
    numbers, texts = _sent(kind.properties if kind else (), property_ or (), "--property")
    record = FeedbackEvent(
        event_id=uuid.uuid4().hex,
        request_id=request_id,
        user_id=user,
        item_id=item,
        event=event,
        value=value,
        properties=numbers,
        properties_text=texts,
        event_time_ms=int(time.time() * 1000),
    )
    answer = _ask("RecordFeedback", RecordFeedbackRequest(events=[record]), 15.0, address)
    console.print(f"{answer.recorded} event recorded")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(app())
