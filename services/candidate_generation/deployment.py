"""Candidate generation hosted: from settings to a running replica."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.artifact import ArtifactError
from models.schema.compiled import Schema
from models.serving import LoadedRetrieval, load_retrieval
from protos.tandem.v1 import candidate_generation_pb2_grpc
from services.candidate_generation.servicer import (
    SERVICE,
    CandidateGenerationServicer,
    Queue,
    Retrieval,
    answer,
    sound,
)
from services.catalogue.follower import followed
from services.common.listener import Listener
from services.common.model_service.device import device
from services.common.model_service.model_queue import ModelQueue
from services.common.model_service.model_slot import ModelSlot, any_in_force, warm_up_jobs
from services.common.model_service.user_context import warm_up_users
from services.common.packed import F4, U8
from services.common.schema import schema_of
from services.common.server import Service
from services.common.settings import Settings

NAME = "candidate_generation"


async def start_replica(settings: Settings) -> Listener:
    """Follow the catalogue, load the models, listen, announce. Needs a running event loop, not Ray.
    Waits for an item, and for a version of a model."""
    mine = settings.candidate_generation
    torch.set_num_threads(mine.threads)
    target = device(mine.num_gpus)
    schema = schema_of(settings)
    catalogue = await followed(settings, mine.artifact_poll_s)

    def load(folder: Path) -> LoadedRetrieval:
        return load_retrieval(folder, target, schema, catalogue.items)

    slots = {
        name: ModelSlot(name, settings.artifacts_dir, load, partial(warm, schema))
        for name in mine.models
    }
    await any_in_force(slots.values(), mine.artifact_poll_s)
    answers = partial(answer, schema, items=lambda: catalogue.items)
    queue: Queue = ModelQueue(NAME, slots, answers, sound, mine)
    register = candidate_generation_pb2_grpc.add_CandidateGenerationServicer_to_server
    service = Service(SERVICE, register, CandidateGenerationServicer(queue))
    closers = (queue.close, catalogue.close, catalogue.event_log.close)
    replica = Listener(NAME, [service], mine.host, settings.run_dir, mine.drain_s, closers)
    await replica.start(*(slot.follow(mine.artifact_poll_s) for slot in slots.values()))
    return replica


def warm(schema: Schema, loaded: LoadedRetrieval, recent: Sequence[Retrieval]) -> None:
    """Answer what is asked and what may be. ArtifactError if an answer orders items by nothing."""
    name = f"{loaded.name} {loaded.version}"
    nobody, somebody = (
        Retrieval(user, loaded.name, 10, loaded.items.keys[:0])
        for user in warm_up_users(schema, loaded.known, loaded.items)
    )
    for jobs in warm_up_jobs(recent, [nobody, somebody]):
        if not all(map(sound, answer(schema, loaded, jobs))):
            raise ArtifactError(f"{name}: scores NaN or infinity: train again, or roll back")
    found = answer(schema, loaded, [somebody])[0]
    scores = np.frombuffer(found.scores, F4)
    # Of what the model does not know it may have nothing to tell.
    scores = scores[loaded.known.index_of(np.frombuffer(found.item_keys, U8)) > 0]
    if len(scores) > 1 and (scores == scores[0]).all():
        raise ArtifactError(
            f"{name}: scores all items alike for a user with a history: train again, or roll back"
        )
