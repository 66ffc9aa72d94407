"""Ranking hosted: from settings to a running replica."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import structlog
import torch

from feature_store.connect import connect
from feature_store.interface import FeatureStoreUnavailable
from models.serving import load_ranking
from protos.tandem.v1 import ranking_pb2_grpc
from protos.tandem.v1.features_pb2 import UserContext
from services.common.device import device
from services.common.model_slot import ModelSlot, warm_up_jobs
from services.common.replica import HostedReplica, Replica
from services.common.server import Service
from services.common.settings import Settings
from services.ranking.counters import ItemCounters
from services.ranking.servicer import SERVICE, RankingServicer, ServedRanking, Slate, answer

log = structlog.get_logger()

NAME = "ranking"


def autocast(precision: str, target: torch.device) -> torch.autocast:
    """The precision to score in: "auto" is bfloat16 where the hardware multiplies it faster."""
    if precision == "auto":
        fast = target.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if fast else "float32"
    return torch.autocast(target.type, torch.bfloat16, enabled=precision == "bfloat16")


async def start_replica(settings: Settings) -> HostedReplica:
    """Load the models, listen, announce. Needs a running event loop, not Ray."""
    mine = settings.ranking
    torch.set_num_threads(mine.threads)
    target = device(mine.num_gpus)
    store = connect(
        settings.feature_store.url,
        timeout_ms=settings.feature_store.timeout_ms,
        lmdb_map_size_mb=settings.feature_store.lmdb_map_size_mb,
    )
    recent: deque[Slate] = deque(maxlen=16)

    def in_precision() -> torch.autocast:
        return autocast(mine.precision, target)

    def load(folder: Path) -> ServedRanking:
        ranking = load_ranking(folder, target)
        counters = ItemCounters(
            store,
            ranking.items,
            refresh_s=mine.counters_refresh_s,
            max_age_s=mine.counters_max_age_s,
        )
        try:
            counters.refresh()
        except FeatureStoreUnavailable as error:
            log.warning("counters_stale", error=str(error))  # defaults until the store is back
        return ServedRanking(ranking, counters)

    def warm(served: ServedRanking) -> None:
        default = Slate(UserContext(), served.ranking.name, served.items.keys[1:201])
        with in_precision():
            for slates in warm_up_jobs(recent, default):
                answer(served, slates)

    slots = {name: ModelSlot(name, settings.artifacts_dir, load, warm) for name in mine.models}
    servicer = RankingServicer(
        slots,
        autocast=in_precision,
        max_batch_rows=mine.max_batch_rows,
        max_queue_rows=mine.max_queue_rows,
        recent=recent,
    )

    async def follow_counters(slot: ModelSlot[ServedRanking]) -> None:
        # The table changes with the version, so the counters to follow are looked up each time.
        while True:
            await slot.loaded.counters.refresh_after(mine.counters_refresh_s)

    replica = Replica(
        NAME,
        [Service(SERVICE, ranking_pb2_grpc.add_RankingServicer_to_server, servicer)],
        mine.host,
        settings.run_dir,
        [
            *(slot.follow(mine.artifact_poll_s) for slot in slots.values()),
            *(follow_counters(slot) for slot in slots.values()),
        ],
    )
    await replica.start()
    return HostedReplica(replica, mine.drain_s, [servicer.close, store.close])
