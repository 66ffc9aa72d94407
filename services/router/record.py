"""The decision record: what was decided, with what and why, for every later reader.

It is written as two messages whose bytes stand one after the other. Protobuf defines that: a parser
that meets bytes of two messages of one type in a row reads what MergeFrom would make of them, where
a field that only one of them has is that one's. The head holds what most requests share (arms,
their parameters, the surface, names and versions) and is encoded once; the tail holds what each
request has of its own. No field is in both.
"""

from __future__ import annotations

import numpy as np

from protos.tandem.v1.records_pb2 import (
    ANSWERED,
    DecisionRecord,
)
from protos.tandem.v1.records_pb2 import Exploration as ExplorationRecord
from services.common.packed import F4, U2, U8
from services.experiments.declare.parameters import EPSILON
from services.experiments.declare.targeting import NOTHING
from services.router.exposure import Exposure, exposure_of
from services.router.hydrate import counts, user_features
from services.router.request import RequestState

MAX_HEADS = 64  # per exposure; surfaces, models and their versions in force are few
ONE = np.float32(1).tobytes()


def decision_record(state: RequestState) -> DecisionRecord:
    """The record as a message."""
    return DecisionRecord.FromString(record_bytes(state))


def record_bytes(state: RequestState) -> bytes:
    """The record of a request that got as far as its arms, answered or not."""
    exposure = exposure_of(state)
    if state.outcome != ANSWERED:
        return _head(state, exposure, (), ()) + _unanswered(state).SerializeToString()
    state.cut()
    candidates = state.candidates
    assert candidates is not None
    head = _head(state, exposure, candidates.sources, state.tasks)
    return head + _answered(state).SerializeToString()


def _head(
    state: RequestState, exposure: Exposure, sources: tuple[str, ...], tasks: tuple[str, ...]
) -> bytes:
    version = state.model_versions.get
    retrieval, ranking = version("candidate_generation"), version("ranking")
    surface = state.request.surface
    key = (surface, sources, tasks, retrieval, ranking)
    head = exposure.heads.get(key)
    if head is None:
        if len(exposure.heads) >= MAX_HEADS:
            exposure.heads.clear()
        head = exposure.heads[key] = DecisionRecord(
            surface=surface,
            assignments=exposure.messages,
            parameters=exposure.decision.overrides,
            held_out=exposure.decision.held_out,
            sources=sources,
            tasks=tasks,
            candidate_generation_version=retrieval,
            ranking_version=ranking,
        ).SerializeToString()
    return head


def _unanswered(state: RequestState) -> DecisionRecord:
    """The tail where nothing was shown: no list and nothing about one."""
    request = state.request
    record = DecisionRecord(
        request_id=state.request_id,
        user_id=request.user_id,
        session_id=request.session_id,
        event_time_ms=state.now_ms,
        outcome=state.outcome,
    )
    _add_subject(record, state)
    return record


def _answered(state: RequestState) -> DecisionRecord:
    candidates, scores, request = state.candidates, state.scores, state.request
    assert candidates is not None
    assert scores is not None
    record = DecisionRecord(
        request_id=state.request_id,
        user_id=request.user_id,
        session_id=request.session_id,
        event_time_ms=state.now_ms,
        item_ids=state.item_ids,
        scores=scores.astype(F4, copy=False).tobytes(),
        propensities=_propensities(state),
        exploration=_exploration(state),
        source_index=candidates.source.tobytes(),
        interest_index=candidates.interest.tobytes(),
        task_scores=_packed(state.task_scores),
        degradations=state.degradations,
        profile_age_s=state.profile.age_s,
        history_age_s=state.history.age_s,
        stage_ms=state.stage_ms,  # as a dict: a message handed over would be copied
        interleaving=state.interleaving,
    )
    _add_subject(record, state)
    return record


def _add_subject(record: DecisionRecord, state: RequestState) -> None:
    """Who asked, as far as experiments look at it: further units, segments, covariates."""
    profile_row = state.profile.row
    if profile_row:
        before = record.before
        before.impressions, before.clicks, before.likes = counts(profile_row)
    assigner = state.assigner
    if assigner is None:
        return
    request, declared = state.request, assigner.config
    if declared.units and request.unit_ids:
        for unit in declared.units:
            if unit in request.unit_ids:
                record.unit_ids[unit] = request.unit_ids[unit]
    if declared.segments:
        user = user_features(profile_row) if assigner.segments_need_user else NOTHING
        record.segments.extend(assigner.segments_of(request.surface, request.context, user))


def _packed(scores: np.ndarray | None) -> bytes:
    return b"" if scores is None else scores.astype(F4, copy=False).tobytes()


def _propensities(state: RequestState) -> bytes:
    """Of an interleaved list none are known: it is no draw from one policy."""
    if state.interleaving is not None:
        return b""
    if state.explored is None:
        return ONE * len(state.item_ids)
    return state.explored.propensities.astype(F4).tobytes()


def _exploration(state: RequestState) -> ExplorationRecord | None:
    pool = state.pool
    if state.explored is None or pool is None:
        return None
    assert pool.keys is not None
    parameters = state.parameters
    by_epsilon = parameters.rerank_exploration == EPSILON
    return ExplorationRecord(
        kind=parameters.rerank_exploration,
        strength=parameters.rerank_epsilon if by_epsilon else parameters.rerank_temperature,
        depth=parameters.rerank_exploration_depth,
        ranked=len(pool.keys),
        places=state.explored.positions.astype(U2).tobytes(),
        item_keys=pool.keys.astype(U8, copy=False).tobytes(),
        task_scores=_packed(pool.task_scores),
    )
