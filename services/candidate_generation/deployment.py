"""Candidate generation hosted: from settings to a running replica."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import torch

from models.serving import LoadedRetrieval, load_retrieval
from protos.tandem.v1 import candidate_generation_pb2_grpc
from protos.tandem.v1.features_pb2 import UserContext
from services.candidate_generation.servicer import (
    SERVICE,
    CandidateGenerationServicer,
    Retrieval,
    answer,
)
from services.common.device import device
from services.common.model_slot import ModelSlot, warm_up_jobs
from services.common.replica import HostedReplica, Replica
from services.common.server import Service
from services.common.settings import Settings

NAME = "candidate_generation"


async def start_replica(settings: Settings) -> HostedReplica:
    """Load the models, listen, announce. Needs a running event loop, not Ray."""
    mine = settings.candidate_generation
    torch.set_num_threads(mine.threads)
    recent: deque[Retrieval] = deque(maxlen=16)
    target = device(mine.num_gpus)

    def load(folder: Path) -> LoadedRetrieval:
        return load_retrieval(folder, target)

    def warm(loaded: LoadedRetrieval) -> None:
        default = Retrieval(UserContext(), loaded.name, 10, loaded.items.keys[:0])
        for jobs in warm_up_jobs(recent, default):
            answer(loaded, jobs)

    slots = {name: ModelSlot(name, settings.artifacts_dir, load, warm) for name in mine.models}
    servicer = CandidateGenerationServicer(
        slots,
        max_batch_rows=mine.max_batch_rows,
        max_queue_rows=mine.max_queue_rows,
        recent=recent,
    )
    replica = Replica(
        NAME,
        [
            Service(
                SERVICE,
                candidate_generation_pb2_grpc.add_CandidateGenerationServicer_to_server,
                servicer,
            )
        ],
        mine.host,
        settings.run_dir,
        [slot.follow(mine.artifact_poll_s) for slot in slots.values()],
    )
    await replica.start()
    return HostedReplica(replica, mine.drain_s, [servicer.close])
