"""What becomes of the catalogue's changes in served lists, without a restart or a training."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from models.catalogue import item_key
from protos.tandem.v1 import catalogue_pb2 as pb
from protos.tandem.v1.candidate_generation_pb2 import RetrieveRequest
from protos.tandem.v1.candidate_generation_pb2_grpc import CandidateGenerationStub
from protos.tandem.v1.catalogue_pb2_grpc import CatalogueStub
from protos.tandem.v1.records_pb2 import FieldValue, Texts
from services.catalogue.main import BuildingServer, builder_of
from services.common.settings import Settings
from services.event_log.connect import connect
from tests.artifacts import publish_small, small_items
from tests.integration.asking import request
from tests.integration.conftest import InProcess, running


@dataclass
class Living:
    """An installation with its catalogue."""

    served: InProcess
    catalogue: CatalogueStub

    async def list_of(self, count: int = 60) -> list[str]:
        answer = await self.served.stub.Recommend(request(num_items=count), timeout=10)
        return [item.item_id for item in answer.items]

    async def shows(self, item_id: str, shown: bool) -> None:
        """Until all lists do, or do not."""
        for _ in range(500):
            if (item_id in await self.list_of()) == shown:
                return
            await asyncio.sleep(0.01)  # between two looks
        raise AssertionError(f"{item_id} is {'not ' if shown else ''}shown")


@pytest.fixture
async def living(small_settings: Settings, tmp_path: Path) -> AsyncIterator[Living]:
    shutil.copytree(small_settings.artifacts_dir, tmp_path / "artifacts")
    settings = small_settings.model_copy(
        update={
            "artifacts_dir": tmp_path / "artifacts",
            "catalogue": small_settings.catalogue.model_copy(
                update={"port": 0, "metrics_port": 0, "drain_s": 1}
            ),
        }
    )
    log = connect(settings.event_log, None)
    builder = builder_of(settings, log)
    assert await asyncio.to_thread(builder.lead, threading.Event())
    server = BuildingServer(settings, builder)
    await server.start()
    async with running(settings) as served, grpc.aio.insecure_channel(server.address) as channel:
        yield Living(served, CatalogueStub(channel))
    await server.drain()
    log.close()


async def test_a_removed_item_leaves_the_lists_and_comes_back_by_an_upsert(living: Living) -> None:
    before = await living.list_of()
    assert len(before) == len(small_items())
    gone = before[3]
    await living.catalogue.RemoveItems(pb.RemoveItemsRequest(item_ids=[gone]))
    await living.shows(gone, False)
    assert sorted(await living.list_of()) == sorted(set(before) - {gone})
    item = pb.Item(item_id=gone, fields={"genres": FieldValue(texts=Texts(values=["Drama"]))})
    await living.catalogue.UpsertItems(pb.ItemsRequest(items=[item]))
    await living.shows(gone, True)


async def test_a_new_item_is_found_by_its_content_and_ranked_after_what_is_known(
    living: Living,
) -> None:
    fields = {"genres": FieldValue(texts=Texts(values=["Drama", "War"]))}
    new = pb.Item(item_id="new", fields=fields)
    await living.catalogue.UpsertItems(pb.ItemsRequest(items=[new]))
    for _ in range(500):
        shown = await living.list_of(100)
        if "new" in shown:
            break
        await asyncio.sleep(0.01)
    assert shown[-1] == "new"
    assert len(shown) == len(small_items()) + 1


async def test_a_changed_field_is_what_models_score_by(living: Living) -> None:
    (address,) = living.served.serving("candidate_generation")
    async with grpc.aio.insecure_channel(address) as channel:
        stub = CandidateGenerationStub(channel)

        async def score() -> float:
            answer = await stub.Retrieve(RetrieveRequest(num_candidates=100), timeout=10)
            keys = np.frombuffer(answer.item_keys, "<u8").tolist()
            return float(np.frombuffer(answer.scores, "<f4")[keys.index(item_key("m5"))])

        before = await score()
        changed = pb.Item(
            item_id="m5", fields={"genres": FieldValue(texts=Texts(values=["Horror", "Western"]))}
        )
        await living.catalogue.PatchItems(pb.ItemsRequest(items=[changed]))
        for _ in range(500):
            if await score() != before:
                return
            await asyncio.sleep(0.01)
    raise AssertionError("the score stayed as it was")


async def test_a_version_of_before_the_catalogue_changed_serves_what_it_has_now(
    living: Living,
) -> None:
    known = await living.list_of()
    await living.catalogue.RemoveItems(pb.RemoveItemsRequest(item_ids=known[:2]))
    added = [pb.Item(item_id=f"n{i}") for i in range(3)]
    await living.catalogue.UpsertItems(pb.ItemsRequest(items=added))
    await living.shows("n2", True)
    # A version that knows the items of before, as one that is rolled back to.
    settings = living.served.settings

    async def version() -> str:
        answer = await living.served.stub.Recommend(request(num_items=5, explain=True), timeout=10)
        return answer.explanation.model_versions["ranking"]

    before = await version()
    await asyncio.to_thread(publish_small, settings.artifacts_dir, ["masknet"], seed=3)
    for _ in range(1_000):
        if await version() != before:
            break
        await asyncio.sleep(0.02)
    expected = sorted({*known, "n0", "n1", "n2"} - {*known[:2]})
    assert sorted(await living.list_of(100)) == expected
