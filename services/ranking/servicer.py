"""Ranking over gRPC: a plain grpc.aio servicer that a test can start in-process.

Requests that are queued when the model thread is free are scored as one batch. The user side of
every request is computed once and broadcast over its candidates; item features are those that the
model took from the catalogue when it was loaded and whenever that changed, counters come from the
background refresh, so a request reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc
import numpy as np
import torch
from prometheus_client import Counter

from models.catalogue import ItemTable
from models.schema.compiled import Schema
from models.serving import LoadedRanking
from protos.tandem.v1 import ranking_pb2 as pb
from protos.tandem.v1 import ranking_pb2_grpc
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.records_pb2 import DEFAULT_COUNTERS, NO_MODEL, Degradation
from services.common.model_service.model_queue import ModelQueue
from services.common.model_service.user_context import batch_of_users, unpack_keys
from services.common.packed import F4
from services.common.rpc import invalid, rpc_method
from services.ranking.counters import ItemCounters
from services.ranking.unknown import unknown_last

SERVICE = "tandem.v1.Ranking"
MAX_ITEMS = 5_000

UNKNOWN_ITEMS = Counter(
    "tandem_ranking_unknown_items_total",
    "Candidates that the ranking model does not know: they stand last; a rise means that many items"
    " are new since it was trained, or that the artifacts have drifted apart: train it anew.",
)
DEFAULT_COUNTERS_USED = Counter(
    "tandem_ranking_default_counters_total",
    "Requests scored with default item counters; a rise means the feature store is unreachable.",
)


class Slate(NamedTuple):
    """One queued request."""

    user: UserContext
    model: str
    keys: np.ndarray  # uint64


class ServedRanking(NamedTuple):
    """A loaded version with the counters of the items that it is served over."""

    ranking: LoadedRanking
    counters: ItemCounters

    @property
    def items(self) -> ItemTable:
        return self.ranking.items

    def follow(self, items: ItemTable) -> None:
        """Be served over a later state of the catalogue."""
        self.ranking.follow(items)
        self.counters.follow(items)


class RankingServicer(ranking_pb2_grpc.RankingServicer):
    """Puts slates into the queue, whose batches `answer` computes."""

    def __init__(self, queue: ModelQueue[Slate, ServedRanking, pb.RankResponse]) -> None:
        self._queue = queue

    @rpc_method("ranking")
    async def Rank(
        self, request: pb.RankRequest, context: grpc.aio.ServicerContext
    ) -> pb.RankResponse:
        keys = unpack_keys("item_keys", request.item_keys, MAX_ITEMS)
        if not len(keys):
            raise invalid("item_keys", f"give 1..{MAX_ITEMS} candidates")
        slate = Slate(request.user, request.model, keys)
        return await self._queue.submit(slate, len(keys), context)


def sound(response: pb.RankResponse) -> bool:
    """Whether every score is a finite number."""
    return bool(np.isfinite(np.frombuffer(response.task_scores, F4)).all())


@torch.inference_mode()
def answer(
    schema: Schema,
    served: ServedRanking,
    slates: Sequence[Slate],
    items: Callable[[], ItemTable] | None = None,
) -> list[pb.RankResponse]:
    """The responses of one batch of slates for one model version; `schema`: of the users' rows.
    `items`: the catalogue as it is now, which the version follows; None: it stays with its own."""
    if items is not None and (now := items()) is not served.items:
        served.follow(now)
    model = served.ranking.model
    rows = served.items.index_of(np.concatenate([slate.keys for slate in slates]))
    lengths = [len(slate.keys) for slate in slates]
    row_user = np.repeat(np.arange(len(slates)), lengths)
    counters, fresh = served.counters.take(rows)
    users = [slate.user for slate in slates]
    user = model.user_part(batch_of_users(users, schema, served.ranking.known, model.reads.history))
    scores = model.score(
        user,
        torch.from_numpy(row_user).to(model.device),
        torch.from_numpy(rows).to(model.device),
        torch.from_numpy(np.ascontiguousarray(counters)).to(model.device),
    )
    found = scores.float().cpu().numpy()
    last = unknown_last(found, served.ranking.unknown[rows])
    unknown = np.bincount(row_user[last], minlength=len(slates)).tolist()
    scores_of = np.split(found, np.cumsum(lengths)[:-1])
    degradations: tuple[Degradation, ...] = () if served.ranking.trained else (NO_MODEL,)
    if not fresh:
        DEFAULT_COUNTERS_USED.inc(len(slates))
        degradations += (DEFAULT_COUNTERS,)
    if any(unknown):
        UNKNOWN_ITEMS.inc(sum(unknown))
    return [
        pb.RankResponse(
            tasks=model.tasks,
            task_scores=scores_of[i].astype(F4).tobytes(),
            unknown_items=unknown[i],
            degradations=degradations,
            model_version=served.ranking.version,
        )
        for i in range(len(slates))
    ]
