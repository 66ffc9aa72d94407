"""Stages 3 to 6 of an interleaved request: two rankings, shown as one list.

Both arms' parameters go through the same stages as any request's, side by side and within the same
limits; what the arms have in common is done once.
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

import asyncio
from collections.abc import Callable

import numpy as np

from models.catalogue import ItemTable
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.records_pb2 import POPULAR_FALLBACK, UNRANKED, Interleaving
from services.experiments.assign.assignment import InterleavedArms
from services.experiments.declare.parameters import Parameters
from services.experiments.lists.interleaving import team_draft
from services.router.filter import filter_candidates
from services.router.rank import rank
from services.router.request import Candidates, RequestState
from services.router.rerank import ranking
from services.router.retrieve import retrieve
from services.router.surroundings import Surroundings

_GENERATOR = np.random.default_rng()  # of this process, seeded by the system

DEPTH = 2  # rankings are so many times as long as the list

_LOSSES = frozenset({POPULAR_FALLBACK, UNRANKED})


async def interleave(
    state: RequestState,
    arms: InterleavedArms,
    user: UserContext,
    around: Surroundings,
    items: ItemTable,
    lap: Callable[[str], None],
    generator: np.random.Generator = _GENERATOR,
) -> None:
    """Fill the state with the list of both arms; `lap` is called at the end of each stage."""
    settings, blocked = around.settings, around.blocked()
    a, b = state.sides = (state.side(arms.a), state.side(arms.b))
    one_pool = same_pool(arms.a, arms.b)
    pools = (a,) if one_pool else (a, b)
    limit_s = settings.retrieve_ms / 1000.0
    await asyncio.gather(
        *(
            retrieve(side, user, around.candidate_generation, items, len(blocked), limit_s)
            for side in pools
        )
    )
    lap("retrieve")
    for side in pools:
        filter_candidates(side, items, blocked)
    if one_pool:
        _share(a, b)
    lap("filter")
    one_call = one_pool and same_model(arms.a, arms.b)
    limit_s = settings.rank_ms / 1000.0
    await asyncio.gather(
        *(rank(side, user, around.ranking, limit_s) for side in ((a,) if one_call else (a, b)))
    )
    if one_call:
        _share(a, b)
    lap("rank")
    _make_list(state, a, b, arms, items, generator)
    lap("rerank")


def same_pool(a: Parameters, b: Parameters) -> bool:
    """Whether both retrieve the same candidates."""
    return (a.retrieval_model, a.retrieval_num_candidates) == (
        b.retrieval_model,
        b.retrieval_num_candidates,
    )


def same_model(a: Parameters, b: Parameters) -> bool:
    """Whether both rank the same candidates alike, before the value model."""
    if not (a.ranking_enabled and b.ranking_enabled):
        return a.ranking_enabled == b.ranking_enabled
    return a.ranking_model == b.ranking_model


def _share(done: RequestState, other: RequestState) -> None:
    """Give the other side what one side has found for both."""
    other.candidates = done.candidates
    other.retrieved, other.filtered = done.retrieved, done.filtered
    other.asked_ranking = done.asked_ranking
    other.tasks, other.task_scores = done.tasks, done.task_scores
    other.model_versions = done.model_versions.copy()
    other.degradations = done.degradations.copy()


def _make_list(
    state: RequestState,
    a: RequestState,
    b: RequestState,
    arms: InterleavedArms,
    items: ItemTable,
    generator: np.random.Generator,
) -> None:
    for side in (a, b):
        for degradation in side.degradations:
            state.degrade(degradation)
    healthy = [side for side in (a, b) if _LOSSES.isdisjoint(side.degradations)]
    if len(healthy) == 2:
        _mix(state, a, b, arms, items, generator)
    else:
        state.one_sided = arms.experiment
        _serve(state, healthy[0] if healthy else a, items)
    assert state.candidates is not None
    assert state.final is not None
    rows = state.candidates.rows.take(state.final)
    state.item_ids = [items.ids[row] for row in rows.tolist()]


def _serve(state: RequestState, side: RequestState, items: ItemTable) -> None:
    """The list of one side, as if the other had never been asked."""
    state.parameters = side.parameters
    state.candidates = side.candidates
    state.retrieved, state.filtered = side.retrieved, side.filtered
    state.tasks, state.task_scores = side.tasks, side.task_scores
    state.model_versions = side.model_versions
    state.final, scores = ranking(side, items, state.request.num_items)
    state.scores = scores.take(state.final)


def _mix(
    state: RequestState,
    a: RequestState,
    b: RequestState,
    arms: InterleavedArms,
    items: ItemTable,
    generator: np.random.Generator,
) -> None:
    """One list of both sides' rankings, and who contributed what."""
    assert a.candidates is not None
    assert b.candidates is not None
    count = state.request.num_items
    a_positions, a_scores = ranking(a, items, DEPTH * count)
    b_positions, b_scores = ranking(b, items, DEPTH * count)
    a_rows, a_positions = _distinct(a.candidates.rows.take(a_positions), a_positions)
    b_rows, b_positions = _distinct(b.candidates.rows.take(b_positions), b_positions)
    drafted = team_draft(a_rows, b_rows, count, generator)
    # Where each item is among the candidates of its side, those of B after all of A's.
    at_a = dict(zip(a_rows.tolist(), a_positions.tolist(), strict=True))
    at_b = dict(zip(b_rows.tolist(), (b_positions + len(a.candidates.rows)).tolist(), strict=True))
    final = [
        (at_b if team else at_a)[row]
        for row, team in zip(drafted.items.tolist(), drafted.teams.tolist(), strict=True)
    ]
    state.final = np.array(final, np.int64)
    state.candidates = _together(a.candidates, b.candidates)
    state.scores = np.concatenate([a_scores, b_scores]).take(state.final)
    if a.tasks == b.tasks and a.task_scores is not None and b.task_scores is not None:
        state.tasks = a.tasks
        state.task_scores = np.concatenate([a.task_scores, b.task_scores])
    one_pool = a.candidates is b.candidates
    state.retrieved = a.retrieved if one_pool else a.retrieved + b.retrieved
    state.filtered = a.filtered if one_pool else a.filtered + b.filtered
    state.model_versions = _versions(a.model_versions, b.model_versions)
    state.interleaving = Interleaving(
        experiment=arms.experiment,
        method=arms.method,
        arm_a=arms.arm_a,
        arm_b=arms.arm_b,
        teams=drafted.teams.astype(np.uint8).tobytes(),
    )


def _distinct(rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without later mentions of a row: a model may name an item twice, a draft must not."""
    if len(set(rows.tolist())) == len(rows):
        return rows, positions
    _, first = np.unique(rows, return_index=True)
    first.sort()
    return rows.take(first), positions.take(first)


def _together(a: Candidates, b: Candidates) -> Candidates:
    """A's candidates and after them B's; what both have found is there twice."""
    sources = a.sources + tuple([s for s in b.sources if s not in a.sources])
    if b.sources:
        place = np.array([sources.index(source) for source in b.sources], np.uint8)
        b = b._replace(source=place.take(b.source))
    return Candidates(
        np.concatenate([a.rows, b.rows]),
        np.concatenate([a.keys, b.keys]),
        np.concatenate([a.scores, b.scores]),
        np.concatenate([a.source, b.source]),
        np.concatenate([a.interest, b.interest]),
        sources,
    )


def _versions(a: dict[str, str], b: dict[str, str]) -> dict[str, str]:
    """Version by service; of two that answered both, A's first."""
    found = dict(a)
    for service, version in b.items():
        if found.setdefault(service, version) != version:
            found[service] += f" {version}"
    return found
