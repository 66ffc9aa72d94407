"""Stage 5: task scores from ranking; retrieval order when it is down, late or knows none.

A ranking model that knows none of the candidates has nothing to say of them: its catalogue is
another one than retrieval's. Those that it does not know among others come back with zeros.
"""

from __future__ import annotations

from protos.tandem.v1.ranking_pb2 import RankRequest, RankResponse
from protos.tandem.v1.records_pb2 import UNRANKED
from services.common.value_model import ValueFunction
from services.experiments.declare.parameters import RANK, RERANK, TO_RANK, weights_read
from services.router.model_call import Malformed, call, scores_of
from services.router.request import Pool, Query, Ranking
from services.router.surroundings import Surroundings


async def rank(pool: Pool, query: Query, around: Surroundings) -> Ranking:
    """The pool with tasks and task scores; without them and UNRANKED where they are not to be had,
    and without either where the parameters do not ask for them."""
    if not len(pool.candidates.rows):
        return Ranking(pool, degradations=pool.degradations)
    query.read.add(TO_RANK)
    value = query.value
    if not query.parameters.ranking_enabled:
        return Ranking(pool, degradations=pool.degradations)
    ranking = await call(
        RANK,
        "Rank",
        lambda: RankRequest(
            user=query.user.context,
            item_keys=pool.candidates.keys.tobytes(),
            model=query.parameters.ranking_model,
        ),
        around.ranking,
        query,
        around.settings.rank_ms / 1000.0,
        lambda response: _unpacked(response, pool, value),
    )
    if ranking is None:
        return Ranking(pool, degradations=(*pool.degradations, UNRANKED))
    query.read.add(RERANK)
    query.read.update(weights_read(value.weights))
    return ranking


def _unpacked(response: RankResponse, pool: Pool, value: ValueFunction) -> Ranking | None:
    """What an answer says of the pool; None: it knows nothing of it. Raises Malformed."""
    tasks, version = tuple(response.tasks[:]), response.model_version
    if lacking := value.lacking(tasks):
        raise Malformed(version, f"there is no task {lacking[0]!r}, by which lists are ordered")
    count = len(pool.candidates.rows)
    scores = scores_of(response.task_scores, count * len(tasks), version)
    if response.unknown_items == count:
        return None
    degradations = pool.degradations
    if response.degradations:
        degradations += tuple(response.degradations)
    return Ranking(pool, tasks, scores.reshape(count, len(tasks)), version, degradations)
