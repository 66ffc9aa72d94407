"""CandidateGeneration over gRPC: a plain grpc.aio servicer that a test can start in-process.

Requests that are queued when the model thread is free run as one batch: users are encoded
together and searched together. The model version is taken once per batch, and so is the state of
the catalogue that it is served over: one answer never mixes two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc
import numpy as np
import torch

from models.catalogue import ItemTable
from models.schema.compiled import Schema
from models.serving import LoadedRetrieval
from protos.tandem.v1 import candidate_generation_pb2 as pb
from protos.tandem.v1 import candidate_generation_pb2_grpc
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.records_pb2 import NO_MODEL
from services.candidate_generation.index import search
from services.common.model_service.model_queue import ModelQueue
from services.common.model_service.user_context import batch_of_users, unpack_keys
from services.common.packed import F4, U4
from services.common.rpc import invalid, rpc_method

SERVICE = "tandem.v1.CandidateGeneration"
MAX_CANDIDATES = 5_000
MAX_SCORED = 10_000
MAX_EXCLUDED = 10_000


class Retrieval(NamedTuple):
    """One queued Retrieve (`wanted` > 0) or Score (`keys` are the items to score)."""

    user: UserContext
    model: str
    wanted: int
    keys: np.ndarray  # uint64: to exclude, or to score


Queue = ModelQueue[Retrieval, LoadedRetrieval, pb.RetrieveResponse | pb.ScoreResponse]


class CandidateGenerationServicer(candidate_generation_pb2_grpc.CandidateGenerationServicer):
    """Puts jobs into the queue, whose batches `answer` computes."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    @rpc_method("candidate_generation")
    async def Retrieve(
        self, request: pb.RetrieveRequest, context: grpc.aio.ServicerContext
    ) -> pb.RetrieveResponse:
        if not 1 <= request.num_candidates <= MAX_CANDIDATES:
            raise invalid(
                "num_candidates", f"{request.num_candidates} is not in 1..{MAX_CANDIDATES}"
            )
        exclude = unpack_keys("exclude_item_keys", request.exclude_item_keys, MAX_EXCLUDED)
        response = await self._queue.submit(
            Retrieval(request.user, request.model, request.num_candidates, exclude), 1, context
        )
        assert isinstance(response, pb.RetrieveResponse)
        return response

    @rpc_method("candidate_generation")
    async def Score(
        self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> pb.ScoreResponse:
        keys = unpack_keys("item_keys", request.item_keys, MAX_SCORED)
        if not len(keys):
            raise invalid("item_keys", f"give 1..{MAX_SCORED} items to score")
        response = await self._queue.submit(
            Retrieval(request.user, request.model, 0, keys), 1, context
        )
        assert isinstance(response, pb.ScoreResponse)
        return response


def sound(response: pb.RetrieveResponse | pb.ScoreResponse) -> bool:
    """Whether it holds candidates, each with a finite score."""
    return isinstance(response, pb.RetrieveResponse) and bool(
        np.isfinite(np.frombuffer(response.scores, F4)).all()
    )


@torch.inference_mode()
def answer(
    schema: Schema,
    loaded: LoadedRetrieval,
    jobs: Sequence[Retrieval],
    items: Callable[[], ItemTable] | None = None,
) -> list[pb.RetrieveResponse | pb.ScoreResponse]:
    """The responses of one batch of jobs for one model version; `schema`: of the users' rows.
    `items`: the catalogue as it is now, which the version follows; None: it stays with its own."""
    if items is not None and (now := items()) is not loaded.items:
        loaded.follow(now)
    read = loaded.model.reads.history
    batch = batch_of_users([job.user for job in jobs], schema, loaded.known, read)
    users = loaded.model.encode_users(batch)
    responses: list[pb.RetrieveResponse | pb.ScoreResponse] = [pb.ScoreResponse()] * len(jobs)
    retrieving = [i for i, job in enumerate(jobs) if job.wanted]
    if retrieving:
        found = search(
            users[retrieving],
            loaded.item_vectors,
            [loaded.items.index_of(jobs[i].keys) for i in retrieving],
            [jobs[i].wanted for i in retrieving],
            loaded.hidden_rows,
        )
        for i, candidates in zip(retrieving, found, strict=True):
            responses[i] = pb.RetrieveResponse(
                item_keys=loaded.items.keys[candidates.rows].tobytes(),
                scores=candidates.scores.tobytes(),
                interest_index=candidates.interests.tobytes(),
                sources=[loaded.model.source],
                source_index=bytes(len(candidates.rows)),
                model_version=loaded.version,
                catalogue=loaded.items.fingerprint,
                item_rows=candidates.rows.astype(U4).tobytes(),
                degradations=() if loaded.trained else (NO_MODEL,),
            )
    for i, job in enumerate(jobs):
        if not job.wanted:
            rows = torch.from_numpy(loaded.items.index_of(job.keys)).to(users.device)
            scores, interests = (users[i] @ loaded.item_vectors[rows].T).float().max(dim=0)
            scores[loaded.hidden[rows]] = torch.nan
            responses[i] = pb.ScoreResponse(
                scores=scores.cpu().numpy().tobytes(),
                interest_index=interests.cpu().numpy().astype(np.uint8).tobytes(),
                model_version=loaded.version,
            )
    return responses
