"""Calling a model service within a request's time; a call that fails only degrades the answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import grpc
import numpy as np
import structlog

from services.common.balancer import NoReplica, ReplicaSet
from services.common.packed import F4
from services.common.value_model import LARGEST_SCORE
from services.router.metrics import STAGE_FAILURES
from services.router.request import Query

log = structlog.get_logger()

MOST_TOGETHER = LARGEST_SCORE**2  # the sum of their squares
MIN_CALL_S = 0.001  # with less than this left a call could not even be sent
TOO_BUSY = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED})

Answer = TypeVar("Answer")


class Malformed(ValueError):
    """A model service's answer that cannot be used: of a broken version or a foreign replica."""

    def __init__(self, version: str, reason: str) -> None:
        super().__init__(f"version {version or 'without a name'}: {reason}")


async def call(
    stage: str,
    method: str,
    message: Callable[[], Any],
    replicas: ReplicaSet,
    query: Query,
    limit_s: float,
    unpack: Callable[[Any], Answer],
) -> Answer | None:
    """What `unpack` makes of a model service's answer (it may raise Malformed); None where that is
    gone, late or of no use, or where there is no time to ask it: then no `message` is made.

    Failures are counted by stage and status. That the service was asked is noted in `query.read`.
    """
    budget = query.request.budget
    timeout_s = budget.stage(limit_s)
    if timeout_s < MIN_CALL_S:
        budget.ran_out = True
        return None
    query.read.add(stage)
    try:
        return unpack(await replicas.call(method, message(), timeout_s))
    except grpc.aio.AioRpcError as error:
        status = error.code().name
        budget.ran_out |= error.code() in TOO_BUSY
        log.debug("stage_failed", stage=stage, status=status, error=str(error))
    except NoReplica as error:
        status = "NO_REPLICA"
        log.debug("stage_failed", stage=stage, status=status, error=str(error))
    except Malformed as error:
        status = "MALFORMED"
        _tell(stage, str(error))
    STAGE_FAILURES.labels(stage, status).inc()
    return None


@lru_cache(1_000)  # once for each version and reason: a line per request would bury the others
def _tell(stage: str, error: str) -> None:
    log.error("answer_refused", stage=stage, error=error)


def scores_of(packed: bytes, count: int, version: str) -> np.ndarray:
    """float32[count] from an answer. Raises Malformed for another number of them, and where one is
    NaN, infinite or beyond LARGEST_SCORE, or all together are: a third of the time of a look at
    each."""
    if len(packed) != 4 * count:
        raise Malformed(version, "the packed fields differ in length")
    scores = np.frombuffer(packed, F4)
    if not float(scores.dot(scores)) <= MOST_TOGETHER:  # nor where it is NaN
        raise Malformed(version, f"a score is NaN, infinite or beyond {LARGEST_SCORE:g}")
    return scores
