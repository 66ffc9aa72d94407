"""`tandem recommend` and `tandem feedback`: a call of the router. Mounted by `services/cli.py`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import grpc
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from models.nearest import nearest
from models.schema.declaration import TEXTS, Field
from services.common.schema import schema_of
from services.common.settings import Settings
from services.common.terminal import fail, load_settings, plain, say

console = Console()

MAX_TABLE_WIDTH = 110
SHOWN_S = 2.0  # the list is not kept from who asked for longer


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


def recommend(
    user: Annotated[str, typer.Option(help="user id")],
    surface: Annotated[
        str, typer.Option(help="where the list is shown [default: the first of schema.yaml]")
    ] = "",
    items: Annotated[int, typer.Option(help="length of the list")] = 10,
    context: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the request, as schema.yaml has it")
    ] = None,
    address: Annotated[str | None, typer.Option(help="host:port of the router")] = None,
) -> None:
    """Ask for a list and print it with its reasons: source, scores, features' ages, arm."""
    from protos.tandem.v1.recommender_pb2 import RecommendRequest

    settings = load_settings()
    declared = schema_of(settings).declaration
    numbers, texts = _sent(declared.context, context or (), "--context")
    known = [field.name for field in declared.context]
    for name in (name for name in numbers if name not in known):
        meant = nearest(name, known)
        say(plain(f"--context {name}: no model reads it; schema.yaml declares none{meant}"))
    surface = surface or declared.surface_names[0]
    request = RecommendRequest(
        user_id=user, surface=surface, num_items=items, explain=True,
        context=numbers, context_text=texts,
    )  # fmt: skip
    answer = _ask("Recommend", request, 5.0, address)
    _print_recommendations(answer, *_shown(settings, [item.item_id for item in answer.items]))


def _sent(
    fields: Iterable[Field], given: Sequence[str], option: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Numbers and texts of NAME=VALUE: texts are those of declared categories and texts."""
    declared = {field.name: field.type for field in fields}
    numbers, texts = dict[str, float](), dict[str, str]()
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise typer.BadParameter(f"write {each!r} as NAME=VALUE", param_hint=option)
        if declared.get(name) in TEXTS:
            texts[name] = value
            continue
        try:
            numbers[name] = float({"true": "1", "false": "0"}.get(value, value))
        except ValueError:
            if name in declared:
                said = (
                    f"{name} is a {declared[name]} in schema.yaml, and {value!r} is neither a"
                    " number nor true or false"
                )
            else:
                said = f"schema.yaml declares no {name} here{nearest(name, declared)}: declare it"
            raise typer.BadParameter(said, param_hint=option) from None
    return numbers, texts


def _shown(settings: Settings, item_ids: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The first text that items are shown by, and theirs by their ids, as the catalogue has them;
    none where it does not answer: the list is what was asked for."""
    from protos.tandem.v1.catalogue_pb2 import GetItemsRequest
    from protos.tandem.v1.catalogue_pb2_grpc import CatalogueStub
    from services.common.channels import CLIENT_OPTIONS
    from services.installation import endpoints

    display, addresses = schema_of(settings).declaration.display, endpoints(settings)["catalogue"]
    if not (display and addresses and item_ids):
        return "", {}
    with grpc.insecure_channel(addresses[0], options=CLIENT_OPTIONS) as channel:
        try:
            wanted = GetItemsRequest(item_ids=item_ids)
            answer = CatalogueStub(channel).GetItems(wanted, timeout=SHOWN_S)
        except grpc.RpcError:
            return display[0], {}
    texts = {k.item.item_id: k.item.fields[display[0]].text for k in answer.items}
    return display[0], {item_id: text for item_id, text in texts.items() if text}


def _print_recommendations(response: object, shown_as: str, texts: dict[str, str]) -> None:
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
    if texts:
        table.add_column(shown_as, no_wrap=True, ratio=1)
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
            *([plain(texts.get(item.item_id, ""))] if texts else []),
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

    declared = schema_of(load_settings()).declaration.event
    numbers, texts = dict[str, float](), dict[str, str]()
    if event in declared:  # else the router says which there are
        numbers, texts = _sent(declared[event].properties, property_ or (), "--property")
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
