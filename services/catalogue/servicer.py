"""Catalogue over gRPC: checks what comes in, hands it to the builder, answers when that is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import grpc

from models.schema.declaration import Declaration
from protos.tandem.v1 import catalogue_pb2 as pb
from protos.tandem.v1 import catalogue_pb2_grpc
from protos.tandem.v1.records_pb2 import ItemRecord
from services.catalogue.builder import Builder, NotBuilding
from services.catalogue.fold import CONTROL
from services.catalogue.merging import Change, Kind, Outcome
from services.catalogue.values import check_fields
from services.common.rpc import Refusal, check_readable, invalid, rpc_method
from services.common.validate import check_id
from services.event_log.interface import LogSaturated, LogUnavailable

SERVICE = "tandem.v1.Catalogue"
MAX_ITEMS = 1_000
MAX_AHEAD_MS = 60_000
TAKEN = "tandem-taken-changes"
EXPORTED_AT_ONCE = 200  # items in a message


class CatalogueServicer(catalogue_pb2_grpc.CatalogueServicer):
    """The feed of items. `builder` runs on a thread of its own."""

    def __init__(
        self, builder: Builder, declaration: Declaration, clock_ms: Callable[[], int]
    ) -> None:
        self._builder, self._declaration, self._clock_ms = builder, declaration, clock_ms

    @rpc_method("catalogue")
    async def UpsertItems(
        self, request: pb.ItemsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ChangesResponse:
        return _answer(await self._change(self._of_items(Kind.UPSERT, request)))

    @rpc_method("catalogue")
    async def PatchItems(
        self, request: pb.ItemsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ChangesResponse:
        return _answer(await self._change(self._of_items(Kind.PATCH, request)))

    @rpc_method("catalogue")
    async def RemoveItems(
        self, request: pb.RemoveItemsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ChangesResponse:
        return _answer(await self._change(self._of_removal(request)))

    @rpc_method("catalogue")
    async def ChangeItems(
        self,
        request_iterator: AsyncIterator[pb.ChangeItemsRequest],
        context: grpc.aio.ServicerContext,
    ) -> pb.ChangesResponse:
        so_far, taken = Outcome(), 0
        try:
            async for request in request_iterator:
                check_readable(request)
                changes = self._of_request(request)
                so_far = so_far.plus(await self._change(changes))
                taken += len(changes)
        except Refusal:
            context.set_trailing_metadata(((TAKEN, str(taken)),))
            raise
        return _answer(so_far)

    @rpc_method("catalogue")
    async def GetItems(
        self, request: pb.GetItemsRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetItemsResponse:
        check_ids(request.item_ids)
        return pb.GetItemsResponse(items=map(known_item, self._builder.known(request.item_ids)))

    async def ExportItems(
        self, request: pb.ExportItemsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetItemsResponse]:
        held: list[pb.KnownItem] = []
        for row in range(1, self._builder.rows() + 1):
            record = self._builder.record(row)
            if record is not None and (request.removed or not record.removed):
                held.append(known_item(record))
            if len(held) == EXPORTED_AT_ONCE:
                yield pb.GetItemsResponse(items=held)
                held = []
            if row % EXPORTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # others want to be answered, too
        if held:
            yield pb.GetItemsResponse(items=held)

    def _of_request(self, request: pb.ChangeItemsRequest) -> list[Change]:
        kind = request.WhichOneof("kind")
        if kind == "remove":
            return self._of_removal(request.remove)
        if kind is None:
            raise invalid("kind", "is not set: give upsert, patch or remove")
        return self._of_items(Kind(kind), getattr(request, kind))

    def _of_items(self, kind: Kind, request: pb.ItemsRequest) -> list[Change]:
        check_ids([item.item_id for item in request.items], "items", ".item_id")
        found = []
        for i, item in enumerate(request.items):
            place = f"items[{i}]"
            check_fields(place, item, self._declaration)
            if kind is Kind.PATCH and not item.fields:
                raise invalid(f"{place}.fields", "is empty: name the fields that change")
            at_ms = self._time(f"{place}.updated_ms", item.updated_ms)
            found.append(Change(kind, item.item_id, at_ms, dict(item.fields)))
        return found

    def _of_removal(self, request: pb.RemoveItemsRequest) -> list[Change]:
        check_ids(request.item_ids)
        at_ms = self._time("updated_ms", request.updated_ms)
        return [Change(Kind.REMOVE, item_id, at_ms) for item_id in request.item_ids]

    def _time(self, field: str, given_ms: int) -> int:
        now_ms = self._clock_ms()
        if not 0 <= given_ms <= now_ms + MAX_AHEAD_MS:
            raise invalid(
                field,
                f"{given_ms} is not in 0..{now_ms + MAX_AHEAD_MS}: give ms since 1970, at most a"
                " minute ahead of this server's clock, or nothing for now",
            )
        return given_ms or now_ms

    async def _change(self, changes: Sequence[Change]) -> Outcome:
        try:
            return await asyncio.wrap_future(self._builder.submit(changes))
        except LogSaturated as error:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        except (NotBuilding, LogUnavailable) as error:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"{error}: send the changes again") from None


def check_ids(item_ids: Collection[str], field: str = "item_ids", of_each: str = "") -> None:
    """Refuse none or too many ids, one that is none, and one that is there twice."""
    if not 1 <= len(item_ids) <= MAX_ITEMS:
        raise invalid(field, f"has {len(item_ids)}; give 1..{MAX_ITEMS}")
    first: dict[str, int] = {}
    for i, item_id in enumerate(item_ids):
        check_id(f"{field}[{i}]{of_each}", item_id)
        if item_id.startswith(CONTROL):
            raise invalid(f"{field}[{i}]{of_each}", "begins with a control character")
        if (before := first.setdefault(item_id, i)) != i:
            raise invalid(f"{field}[{i}]{of_each}", f"is that of {field}[{before}], too")


def known_item(record: ItemRecord) -> pb.KnownItem:
    """An item as it is told to who asks."""
    found = pb.KnownItem(removed=record.removed)
    found.item.item_id, found.item.updated_ms = record.item_id, record.updated_ms
    for name, field in record.fields.items():
        if field.value.WhichOneof("kind") is not None:
            found.item.fields[name].CopyFrom(field.value)
    return found


def _answer(outcome: Outcome) -> pb.ChangesResponse:
    return pb.ChangesResponse(
        changed=outcome.changed,
        stale=outcome.stale,
        unknown=outcome.unknown,
        unknown_item_ids=outcome.unknown_ids,
    )
