"""The decision record: what was decided, with what and why, for every later reader.

It is written as two messages whose bytes stand one after the other. Protobuf defines that: a parser
that meets bytes of two messages of one type in a row reads what MergeFrom would make of them, where
a field that only one of them has is that one's. The head holds what most requests share (arms,
their parameters, the surface, names and versions) and is encoded once; the tail holds what each
request has of its own. No field is in both, nor of `before`: the head has what the tail's numbers
are of.
"""

from __future__ import annotations

import numpy as np

from protos.tandem.v1.records_pb2 import ANSWERED, Before, DecisionRecord
from protos.tandem.v1.records_pb2 import Exploration as ExplorationRecord
from services.common.packed import F4, U2, U8
from services.experiments.declare.targeting import NOTHING
from services.router.request import Ranking, RequestState, Shown
from services.router.user_rows import features_of

MAX_HEADS = 64  # per exposure; surfaces, models and their versions in force are few
ONE = np.float32(1).tobytes()


def decision_record(state: RequestState) -> DecisionRecord:
    """The record as a message."""
    return DecisionRecord.FromString(record_bytes(state))


def record_bytes(state: RequestState) -> bytes:
    """The record of a request that got as far as its arms, answered or not."""
    shown = state.shown
    if state.outcome != ANSWERED or shown is None:
        return _head(state, state.ranking, (), ()) + _tail(state, None).SerializeToString()
    ranking = shown.ranking
    head = _head(state, ranking, ranking.pool.candidates.sources, ranking.tasks)
    return head + _tail(state, shown).SerializeToString()


def _head(
    state: RequestState, ranking: Ranking | None, sources: tuple[str, ...], tasks: tuple[str, ...]
) -> bytes:
    exposure, surface = state.exposure, state.request.asked.surface
    retrieved_by = None if ranking is None else ranking.pool.version
    ranked_by = None if ranking is None else ranking.version
    numbers = state.user.numbers
    known = b"" if numbers is None else numbers.kept.sources
    key = (surface, sources, tasks, retrieved_by, ranked_by, known)
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
            candidate_generation_version=retrieved_by,
            ranking_version=ranked_by,
            before=Before(sources=known) if known else None,
            schema_revision=state.request.schema_revision,
        ).SerializeToString()
    return head


def _tail(state: RequestState, shown: Shown | None) -> DecisionRecord:
    """What a request has of its own; where nothing was shown, nothing about a list."""
    request, asked = state.request, state.request.asked
    record = DecisionRecord() if shown is None else _listed(state, shown)
    record.request_id = request.request_id
    record.user_id = asked.user_id
    record.session_id = asked.session_id
    record.event_time_ms = request.now_ms
    if state.outcome is not None:
        record.outcome = state.outcome
    _add_subject(record, state)
    return record


def _listed(state: RequestState, shown: Shown) -> DecisionRecord:
    """What was shown, and how it came about."""
    return DecisionRecord(
        item_ids=shown.item_ids,
        scores=_packed(shown.scores),
        propensities=_propensities(shown),
        exploration=_exploration(shown),
        source_index=shown.source.tobytes(),
        interest_index=shown.interest.tobytes(),
        task_scores=_packed(shown.task_scores),
        degradations=shown.degradations,
        profile_age_s=state.user.profile.age_s,
        history_age_s=state.user.history.age_s,
        stage_ms=state.stage_ms,  # as a dict: a message handed over would be copied
        interleaving=shown.interleaving,
    )


def _add_subject(record: DecisionRecord, state: RequestState) -> None:
    """Who asked, as far as experiments look at it: further units, segments, covariates."""
    numbers = state.user.numbers
    if numbers is not None:
        record.before.numbers = numbers.kept.packed.pack(*numbers.values)
    asked, assigner = state.request.asked, state.request.assigner
    declared = assigner.config
    if declared.units and asked.unit_ids:
        for unit in declared.units:
            if unit in asked.unit_ids:
                record.unit_ids[unit] = asked.unit_ids[unit]
    if declared.segments:
        user = features_of(numbers) if assigner.segments_need_user else NOTHING
        record.segments.extend(assigner.segments_of(asked.surface, asked.context, user))


def _packed(scores: np.ndarray | None) -> bytes:
    return b"" if scores is None else scores.astype(F4, copy=False).tobytes()


def _propensities(shown: Shown) -> bytes:
    """Of an interleaved list none are known: it is no draw from one policy."""
    if shown.interleaving is not None:
        return b""
    if shown.draw is None:
        return ONE * len(shown.item_ids)
    return shown.draw.explored.propensities.astype(F4).tobytes()


def _exploration(shown: Shown) -> ExplorationRecord | None:
    """With the ranking that the list was drawn from."""
    if shown.draw is None:
        return None
    ranking, parameters = shown.ranking, shown.parameters
    ranked = shown.draw.ranked
    scores = ranking.task_scores
    return ExplorationRecord(
        kind=parameters.rerank_exploration,
        strength=parameters.exploration_strength,
        depth=parameters.rerank_exploration_depth,
        ranked=len(ranked),
        places=shown.draw.explored.positions.astype(U2).tobytes(),
        item_keys=ranking.pool.candidates.keys.take(ranked).astype(U8, copy=False).tobytes(),
        task_scores=_packed(None if scores is None else scores.take(ranked, axis=0)),
    )
