"""Stage 4: nothing seen, blocked, excluded or unknown is shown; popular items fill a short list.

Candidate generation leaves the user's excluded items out (`Candidates.screened`). The popular
fallback and the blocked items have not been through it, and an item that was withdrawn from the
catalogue a moment ago may be among its answer.
"""

from __future__ import annotations

import numpy as np

from models.catalogue import ItemTable
from protos.tandem.v1.records_pb2 import FEWER_ITEMS
from services.router.request import POPULAR, Candidates, RequestState
from services.router.retrieve import popular


def eligible(candidates: Candidates, *excluded: np.ndarray) -> np.ndarray:
    """bool[n]: known to the catalogue and in none of the ascending key arrays `excluded`."""
    keep = candidates.rows > 0
    for keys in excluded:
        if len(keys):
            # np.isin would sort both sides: four times the time for a few hundred keys.
            nearest = keys.take(keys.searchsorted(candidates.keys), mode="clip")
            keep &= nearest != candidates.keys
    return keep


def filter_candidates(state: RequestState, items: ItemTable, blocked: np.ndarray) -> None:
    """Keep what may be shown, at most as many as are worth ranking; refill when too few are left.

    `blocked`: uint64 keys, ascending, of items that nobody is shown.
    """
    candidates = state.candidates
    assert candidates is not None
    retrieved, wanted = len(candidates.rows), state.wanted
    if len(blocked) or not candidates.screened:
        excluded = () if candidates.screened else (state.excluded_keys,)
        candidates = candidates.take(np.flatnonzero(eligible(candidates, *excluded, blocked)))
        state.filtered = retrieved - len(candidates.rows)
    if len(candidates.rows) > wanted:
        candidates = candidates.take(np.arange(wanted))
    missing = state.request.num_items - len(candidates.rows)
    if missing > 0:
        candidates = _refill(candidates, missing, state.excluded_keys, blocked, items)
        if len(candidates.rows) < state.request.num_items:
            state.degrade(FEWER_ITEMS)
    state.candidates = candidates


def _refill(
    candidates: Candidates,
    missing: int,
    excluded: np.ndarray,
    blocked: np.ndarray,
    items: ItemTable,
) -> Candidates:
    """The candidates followed by up to `missing` popular items that are not among them."""
    taken = np.sort(candidates.keys)
    extra = popular(items, missing + len(taken) + len(excluded) + len(blocked))
    extra = extra.take(np.flatnonzero(eligible(extra, taken, excluded, blocked))[:missing])
    sources = candidates.sources
    if POPULAR not in sources:
        sources = (*sources, POPULAR)
    # Scores of two sources are not comparable: popular items go after the retrieved ones.
    floor = candidates.scores.min() if len(candidates.scores) else np.float32(0)
    return Candidates(
        np.concatenate([candidates.rows, extra.rows]),
        np.concatenate([candidates.keys, extra.keys]),
        np.concatenate([candidates.scores, floor - 1 + extra.scores]).astype(np.float32),
        np.concatenate(
            [candidates.source, np.full(len(extra.rows), sources.index(POPULAR), np.uint8)]
        ),
        np.concatenate([candidates.interest, extra.interest]),
        sources,
    )
