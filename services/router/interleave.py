"""Stage 6 of an interleaved request: two rankings, shown as one list.

Both arms' parameters have gone through the same stages as any request's (pipeline.py).
services/experiments/lists/interleaving.py drafts.

Nothing is explored: a list from two rankings is no draw from one policy, and its record holds no
propensities. A list to which one side could not contribute its own ranking (candidate generation or
ranking was down or late for it, or ranking knew no candidate) says nothing about the rankers. Then
the healthy side's list is served as it is, or A's if none is healthy, without teams, and the record
says that it was no exposure to the experiment; the degradations of both sides are said.

An item's score, source and task scores are those of the side that contributed it. Scores of the two
sides need have no common scale, and task scores are left out where the sides' tasks differ.
"""

from __future__ import annotations

import numpy as np

from protos.tandem.v1.records_pb2 import POPULAR_FALLBACK, UNRANKED, Interleaving
from services.experiments.assign.assignment import InterleavedArms
from services.experiments.declare.parameters import (
    RANK,
    RETRIEVE,
    TO_RANK,
    Parameters,
    attributes_read_in,
)
from services.experiments.lists.interleaving import team_draft
from services.router.request import Pool, Query, Ranking, Shown, show
from services.router.rerank import order

_GENERATOR = np.random.default_rng()  # of this process, seeded by the system

DEPTH = 2  # rankings are so many times as long as the list

_OF_THE_POOL = attributes_read_in(RETRIEVE)
_WHETHER_TO_RANK = attributes_read_in(TO_RANK)
_TO_RANK_BY = attributes_read_in(RANK)

_LOSSES = frozenset({POPULAR_FALLBACK, UNRANKED})


def same_pool(a: Parameters, b: Parameters) -> bool:
    """Whether both retrieve the same candidates."""
    return _agree(_OF_THE_POOL, a, b)


def same_model(a: Parameters, b: Parameters) -> bool:
    """Whether both rank the same candidates alike, before the value model."""
    return _agree(_WHETHER_TO_RANK, a, b) and (not a.ranking_enabled or _agree(_TO_RANK_BY, a, b))


def _agree(names: tuple[str, ...], a: Parameters, b: Parameters) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in names)


def interleave(
    a: Ranking,
    b: Ranking,
    query: Query,
    arms: InterleavedArms,
    generator: np.random.Generator = _GENERATOR,
) -> Shown:
    """The list of both arms' rankings. query: the request's, whose parameters are A's."""
    sides = ((a, arms.a), (b, arms.b))
    healthy = [side for side in sides if _LOSSES.isdisjoint(side[0].degradations)]
    if len(healthy) == 2:
        return _mixed(a, b, query, arms, generator)
    # The list of one side, as if the other had never been asked.
    ranking, parameters = (healthy or sides)[0]
    positions, scores = order(ranking, parameters, query, query.num_items)
    return show(
        ranking._replace(degradations=a.degradations + b.degradations),
        positions,
        scores,
        query._replace(parameters=parameters),
        one_sided=arms.experiment,
    )


def _mixed(
    a: Ranking, b: Ranking, query: Query, arms: InterleavedArms, generator: np.random.Generator
) -> Shown:
    """One list of both sides' rankings, and who contributed what."""
    count = query.num_items
    a_positions, a_scores = order(a, arms.a, query, DEPTH * count)
    b_positions, b_scores = order(b, arms.b, query, DEPTH * count)
    a_rows, a_positions = _distinct(a.pool.candidates.rows.take(a_positions), a_positions)
    b_rows, b_positions = _distinct(b.pool.candidates.rows.take(b_positions), b_positions)
    drafted = team_draft(a_rows, b_rows, count, generator)
    # Where each item is among the candidates of its side, those of B after all of A's.
    at_a = dict(zip(a_rows.tolist(), a_positions.tolist(), strict=True))
    behind_a = b_positions + len(a.pool.candidates.rows)
    at_b = dict(zip(b_rows.tolist(), behind_a.tolist(), strict=True))
    final = [
        (at_b if team else at_a)[row]
        for row, team in zip(drafted.items.tolist(), drafted.teams.tolist(), strict=True)
    ]
    said = Interleaving(
        experiment=arms.experiment,
        method=arms.method,
        arm_a=arms.arm_a,
        arm_b=arms.arm_b,
        teams=drafted.teams.astype(np.uint8).tobytes(),
    )
    return show(
        _together(a, b),
        np.array(final, np.int64),
        np.concatenate([a_scores, b_scores]),
        query,
        interleaving=said,
    )


def _distinct(rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without later mentions of a row: a model may name an item twice, a draft must not."""
    if len(set(rows.tolist())) == len(rows):
        return rows, positions
    _, first = np.unique(rows, return_index=True)
    first.sort()
    return rows.take(first), positions.take(first)


def _together(a: Ranking, b: Ranking) -> Ranking:
    """A's candidates and after them B's, with the scores that they have in common."""
    one_pool = a.pool is b.pool
    pool = Pool(
        a.pool.candidates.then(b.pool.candidates),
        a.pool.retrieved if one_pool else a.pool.retrieved + b.pool.retrieved,
        _both(a.pool.version, b.pool.version),
        a.pool.filtered if one_pool else a.pool.filtered + b.pool.filtered,
    )
    tasks: tuple[str, ...] = ()
    task_scores = None
    if a.tasks == b.tasks and a.task_scores is not None and b.task_scores is not None:
        tasks, task_scores = a.tasks, np.concatenate([a.task_scores, b.task_scores])
    version = _both(a.version, b.version)
    return Ranking(pool, tasks, task_scores, version, a.degradations + b.degradations)


def _both(a: str | None, b: str | None) -> str | None:
    """The version of a service: of two that answered both, A's first."""
    if a is None or b is None or a == b:
        return b if a is None else a
    return f"{a} {b}"
