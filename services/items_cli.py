"""`tandem items`: the catalogue of a running installation. Mounted by `services/cli.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import grpc
import typer
from rich.console import Console

from models.data.errors import DataError
from models.data.import_cli import File, Map, Separator, Strict, Timezone, mapping_of
from services.common.schema import schema_of
from services.common.settings import Settings
from services.common.terminal import fail, load_settings, plain, say

if TYPE_CHECKING:
    import polars as pl

    from protos.tandem.v1.catalogue_pb2 import ChangesResponse, KnownItem
    from protos.tandem.v1.catalogue_pb2_grpc import CatalogueStub
    from services.catalogue.feeding import Plan

app = typer.Typer(
    no_args_is_help=True,
    help="What can be shown: bring items into the running catalogue, change them, take them out.",
)
console = Console(highlight=False)

CALL_S = 60.0  # of one call
EXPORTED = ".jsonl", ".ndjson", ".parquet"

Address = Annotated[str | None, typer.Option(help="host:port of the catalogue")]
Ids = Annotated[list[str], typer.Argument(metavar="ITEM...", help="ids of items")]


@app.command()
def upsert(
    file: File,
    map_: Map = None,
    timezone: Timezone = None,
    separator: Separator = "|",
    strict: Strict = False,
    address: Address = None,
) -> None:
    """Bring items as a file has them: new ones, and known ones whole. Others stay."""
    plan, at_ms, stub = _planned(file, map_, timezone, separator, strict, address)
    plan = plan._replace(gone=[])
    _carry_out(plan, at_ms, stub)
    console.print(f"{len(plan.new):,} new, {len(plan.other):,} changed, {plan.same:,} as they were")


@app.command()
def sync(
    file: File,
    map_: Map = None,
    timezone: Timezone = None,
    separator: Separator = "|",
    strict: Strict = False,
    most_removed: Annotated[
        str, typer.Option(help="Refuse to take out more of the items than this.")
    ] = "5%",
    address: Address = None,
) -> None:
    """Make the catalogue equal to a file: what the file does not have is taken out."""
    most = _share(most_removed)
    # An item whose row was refused is in the file all the same, and must not be taken out.
    plan, at_ms, stub = _planned(file, map_, timezone, separator, strict, address, whole=True)
    there = len(plan.gone) + len(plan.other) + plan.same
    if len(plan.gone) > most * there:
        fail(
            f"{file}: lacks {len(plan.gone):,} of the {there:,} items of the catalogue, which would"
            f" be taken out, and --most-removed is {most_removed}: nothing was changed. Look"
            " whether the file is whole; if they shall go, say so with a larger --most-removed"
        )
    _carry_out(plan, at_ms, stub)
    console.print(
        f"{len(plan.new):,} new, {len(plan.other):,} changed, {len(plan.gone):,} removed,"
        f" {plan.same:,} as they were"
    )


@app.command(name="set")
def set_(
    item: Annotated[str, typer.Argument(help="id of an item")],
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="fields to change")],
    timezone: Timezone = None,
    separator: Separator = "|",
    address: Address = None,
) -> None:
    """Change some fields of an item; NAME= takes a value back. The others stay."""
    from protos.tandem.v1.catalogue_pb2 import Item, ItemsRequest
    from services.catalogue.feeding import items_of

    settings = load_settings()
    declaration = schema_of(settings).declaration
    given = _given(values)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "item.csv"
        names = ["item_id", *given]
        file.write_text("\n".join(map(_csv_line, (names, [item, *given.values()]))) + "\n")
        frame, ignored = _read(file, settings, None, timezone, separator, True, item)
    if ignored:
        from models.nearest import nearest

        known = (*declaration.item_field, *declaration.display)
        fail(f"{ignored[0]}: is no field of items{nearest(ignored[0], known)}")
    from protos.tandem.v1.records_pb2 import FieldValue

    fields = dict(next(items_of(frame, declaration))[1])
    fields |= {name: FieldValue() for name, value in given.items() if not value}
    request = ItemsRequest(items=[Item(item_id=item, fields=fields)])
    answer = _call(_stub(settings, address), "PatchItems", request)
    _check_known(answer)
    console.print("changed" if answer.changed else "it says that already")


@app.command()
def remove(items: Ids, address: Address = None) -> None:
    """Take items out: nobody is shown them any more. An upsert brings them back."""
    from protos.tandem.v1.catalogue_pb2 import RemoveItemsRequest
    from services.catalogue.feeding import in_parts

    settings = load_settings()
    stub, removed, missing = _stub(settings, address), 0, list[str]()
    for part in in_parts(dict.fromkeys(items)):
        answer = _call(stub, "RemoveItems", RemoveItemsRequest(item_ids=part))
        removed += answer.changed
        missing += answer.unknown_item_ids
    console.print(f"{removed:,} removed")
    if missing:
        fail(f"no item of the catalogue: {', '.join(map(repr, missing[:10]))}")


@app.command()
def get(items: Ids, address: Address = None) -> None:
    """Print items as they are, one JSON object per line."""
    import json

    from protos.tandem.v1.catalogue_pb2 import GetItemsRequest
    from services.catalogue.values import plain as plain_value

    settings = load_settings()
    wanted = list(dict.fromkeys(items))
    answer = _call(_stub(settings, address), "GetItems", GetItemsRequest(item_ids=wanted))
    for known in answer.items:
        fields = {n: plain_value(v) for n, v in sorted(known.item.fields.items())}
        document = {
            "item_id": known.item.item_id,
            **fields,
            **({"removed": True} if known.removed else {}),
        }
        print(json.dumps(document, ensure_ascii=False))
    there = {known.item.item_id for known in answer.items}
    if missing := [each for each in wanted if each not in there]:
        fail(f"no item of the catalogue: {', '.join(map(repr, missing[:10]))}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="a new file: .jsonl, .ndjson or .parquet")],
    address: Address = None,
) -> None:
    """Write all items that are there into a file, as `sync` and `tandem import items` read it."""
    from models.data.own.wanted import schema_of as columns_of
    from models.data.own.wanted import wanted_of
    from models.files import replacing
    from services.catalogue.feeding import frame_of

    if file.suffix not in EXPORTED:
        fail(f"{file}: name one that ends in {', '.join(EXPORTED)}")
    settings = load_settings()
    columns = columns_of(wanted_of("items", schema_of(settings).declaration))
    frame = frame_of(_all(_stub(settings, address)), columns)
    try:
        with replacing(file, durable=False) as beside:
            if file.suffix == ".parquet":
                frame.write_parquet(beside)
            else:
                frame.write_ndjson(beside)
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    console.print(f"{file}: {len(frame):,} items")


def _planned(
    file: Path,
    map_: list[str] | None,
    timezone: str | None,
    separator: str,
    strict: bool,
    address: str | None,
    whole: bool = False,
) -> tuple[Plan, int, CatalogueStub]:
    from services.catalogue.feeding import planned

    settings = load_settings()
    stub = _stub(settings, address)
    at_ms = time.time_ns() // 1_000_000
    frame, _ = _read(file, settings, map_, timezone, separator, strict, whole=whole)
    return planned(frame, schema_of(settings).declaration, _all(stub), at_ms), at_ms, stub


def _read(
    file: Path,
    settings: Settings,
    map_: Sequence[str] | None,
    timezone: str | None,
    separator: str,
    strict: bool,
    of: str = "",
    whole: bool = False,
) -> tuple[pl.DataFrame, Sequence[str]]:
    """The items of a file, the last of those with one id, and its columns that are none. `of`: told
    instead of the file. `whole`: no row of it may be refused."""
    import polars as pl

    from models.data.import_cli import print_refused
    from models.data.own.imports import Options, read_file

    options = Options(mapping_of(map_ or ()), timezone, separator, strict)
    declaration = schema_of(settings).declaration
    with tempfile.TemporaryDirectory(prefix="tandem-items-") as scratch:
        try:
            now_ms = time.time_ns() // 1_000_000
            read = read_file("items", file, declaration, options, now_ms, Path(scratch))
        except DataError as error:
            fail(str(error).replace(str(file), of) if of else str(error))
        parts = list(read.parts)
    if not of:
        print_refused("items", read.tally, read.ignored)
    if whole and read.tally.refusals:
        fail(
            f"{file}: {read.tally.refusals:,} rows were refused, and what the file says of their"
            " items is not known: nothing was changed. Mend them, or bring the others with"
            " `tandem items upsert`"
        )
    if not parts:
        fail(f"{file}: no row could be taken")
    frame = pl.concat(parts).unique("item_id", keep="last", maintain_order=True)
    return frame, read.ignored


def _carry_out(plan: Plan, at_ms: int, stub: CatalogueStub) -> None:
    answer = _call(stub, "ChangeItems", plan.requests(at_ms))
    if answer.stale:
        say(
            f"[bold yellow]{answer.stale:,} not changed:[/] somebody said something newer of them"
            " meanwhile"
        )


def _all(stub: CatalogueStub) -> Iterator[KnownItem]:
    from protos.tandem.v1.catalogue_pb2 import ExportItemsRequest

    try:
        for part in stub.ExportItems(ExportItemsRequest()):
            yield from part.items
    except grpc.RpcError as error:
        _fail(error)


def _stub(settings: Settings, address: str | None) -> CatalogueStub:
    """The catalogue's, or a sentence where none runs."""
    from protos.tandem.v1.catalogue_pb2_grpc import CatalogueStub
    from services.common.channels import CLIENT_OPTIONS, joined
    from services.installation import endpoints

    if address is None:
        found = endpoints(settings)["catalogue"]
        address = found[0] if found else joined(settings.catalogue.host, settings.catalogue.port)
    return CatalogueStub(grpc.insecure_channel(address, options=CLIENT_OPTIONS))


def _call(stub: CatalogueStub, method: str, request: object) -> Any:
    timeout = None if method == "ChangeItems" else CALL_S
    try:
        return getattr(stub, method)(request, timeout=timeout)
    except grpc.RpcError as error:
        _fail(error)


def _fail(error: grpc.RpcError) -> NoReturn:
    from services.catalogue.servicer import TAKEN

    status = error.code()
    hint = ""
    if status is grpc.StatusCode.UNAVAILABLE:
        hint = ": does `tandem serve` run, or name the catalogue with --address"
    if taken := dict(error.trailing_metadata() or ()).get(TAKEN):
        hint += f" ({taken} changes before it were taken; the command may be run again)"
    fail(f"{status.name}: {error.details()}{hint}")


def _check_known(answer: ChangesResponse) -> None:
    if answer.unknown:
        fail(f"no item of the catalogue: {plain(repr(answer.unknown_item_ids[0]))}")


def _share(text: str) -> float:
    """0..1 of `5%` or `0.05`."""
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if not 0 <= found <= 1:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no share: write 5%", param_hint="--most-removed"
        ) from None
    return found


def _given(values: Sequence[str]) -> dict[str, str]:
    """The value of each NAME=VALUE."""
    found = {}
    for each in values:
        name, equals, value = each.partition("=")
        if not (name and equals) or name in found:
            raise typer.BadParameter(f"write {each!r} as NAME=VALUE, each name once")
        found[name] = value
    return found


def _csv_line(cells: Iterable[str]) -> str:
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
