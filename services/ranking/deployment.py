"""Ranking hosted: from settings to a running replica."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch

from feature_store.interface import FeatureStoreUnavailable
from models.artifact import ArtifactError
from models.serving import load_ranking
from protos.tandem.v1 import ranking_pb2_grpc
from protos.tandem.v1.ranking_pb2 import RankResponse
from services.catalogue.follower import followed
from services.common.feature_store import store_of
from services.common.listener import Listener
from services.common.model_service.device import device
from services.common.model_service.memory import bound_kernels, give_back
from services.common.model_service.model_queue import ModelQueue
from services.common.model_service.model_slot import ModelSlot, any_in_force, warm_up_jobs
from services.common.model_service.user_context import popular_items, warm_up_users
from services.common.schema import schema_of
from services.common.server import Service
from services.common.settings import Settings
from services.common.value_model import ValueModel
from services.ranking.counters import ItemCounters
from services.ranking.servicer import SERVICE, RankingServicer, ServedRanking, Slate, answer, sound

log = structlog.get_logger()

NAME = "ranking"


def autocast(precision: str, target: torch.device) -> torch.autocast:
    """The precision to score in: "auto" is bfloat16 where the hardware multiplies it faster."""
    if precision == "auto":
        fast = target.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if fast else "float32"
    return torch.autocast(target.type, torch.bfloat16, enabled=precision == "bfloat16")


async def start_replica(settings: Settings) -> Listener:
    """Follow the catalogue, load the models, listen, announce. Needs a running event loop, not Ray.
    Waits for an item, and for a version of a model."""
    mine = settings.ranking
    torch.set_num_threads(mine.threads)
    bound_kernels(len(mine.models))
    target = device(mine.num_gpus)
    schema = schema_of(settings)
    catalogue = await followed(settings, mine.artifact_poll_s)
    value_tasks = ValueModel(schema.declaration).tasks
    store = store_of(settings)

    def in_precision(served: ServedRanking, slates: Sequence[Slate]) -> list[RankResponse]:
        with autocast(mine.precision, target):
            return answer(schema, served, slates, lambda: catalogue.items)

    def load(folder: Path) -> ServedRanking:
        ranking = load_ranking(folder, target, schema, catalogue.items)
        if lacking := [task for task in value_tasks if task not in ranking.model.tasks]:
            raise ArtifactError(
                f"{ranking.name} {ranking.version}: it does not predict the task {lacking[0]}, by"
                " which lists are ordered: train it with this task, or take the task out of the"
                " value formulas in schema.yaml"
            )
        counters = ItemCounters(
            schema,
            store,
            ranking.items,
            ranking.model.counters,
            refresh_s=mine.counters_refresh_s,
            max_age_s=mine.counters_max_age_s,
        )
        try:
            counters.refresh()
        except FeatureStoreUnavailable as error:
            log.warning("counters_stale", error=str(error))  # defaults until the store is back
        return ServedRanking(ranking, counters)

    def warm(served: ServedRanking, recent: Sequence[Slate]) -> None:
        ranking, known = served.ranking, served.ranking.known
        keys = known.keys[popular_items(known, served.items, 200)]
        users = warm_up_users(schema, known, served.items)
        defaults = [Slate(user, ranking.name, keys) for user in users]
        for slates in warm_up_jobs(recent, defaults):
            if not all(map(sound, in_precision(served, slates))):
                raise ArtifactError(
                    f"{ranking.name} {ranking.version}: scores NaN or infinity in"
                    f" {mine.precision} precision: train again, or roll back"
                )

    slots = {name: ModelSlot(name, settings.artifacts_dir, load, warm) for name in mine.models}
    await any_in_force(slots.values(), mine.artifact_poll_s)
    queue = ModelQueue(NAME, slots, in_precision, sound, mine)

    async def follow_counters(slot: ModelSlot[ServedRanking, Slate]) -> None:
        # A version has counters of its own, so those to follow are looked up each time.
        while True:
            if slot.in_force:
                await slot.loaded.counters.refresh_after(mine.counters_refresh_s)
            else:
                await asyncio.sleep(mine.artifact_poll_s)

    servicer = RankingServicer(queue)
    service = Service(SERVICE, ranking_pb2_grpc.add_RankingServicer_to_server, servicer)
    closers = (queue.close, store.close, catalogue.close, catalogue.event_log.close)
    replica = Listener(NAME, [service], mine.host, settings.run_dir, mine.drain_s, closers)
    await replica.start(
        *(slot.follow(mine.artifact_poll_s) for slot in slots.values()),
        *(follow_counters(slot) for slot in slots.values()),
        give_back(queue.idle),
    )
    return replica
