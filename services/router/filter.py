"""Stage 4: nothing seen, blocked, excluded or unknown is shown; popular items fill a short list.

Candidate generation has left the excluded items out already; the popular fallback and an item
that was withdrawn from the catalogue a moment ago have not been through it.
"""

from __future__ import annotations

import numpy as np

from models.catalogue import ItemTable
from protos.tandem.v1.records_pb2 import FEWER_ITEMS
from services.router.request import POPULAR, Candidates, RequestState
from services.router.retrieve import popular


def eligible(candidates: Candidates, excluded: np.ndarray) -> np.ndarray:
    """bool[n]: known to the catalogue and not excluded."""
    known = candidates.rows > 0
    if not len(excluded):
        return known
    # np.isin would sort both sides: four times the time for a few hundred keys.
    ordered = np.sort(excluded)
    nearest = ordered.take(ordered.searchsorted(candidates.keys), mode="clip")
    return known & (nearest != candidates.keys)


def filter_candidates(state: RequestState, items: ItemTable) -> None:
    """Keep what may be shown; refill from the popular items when too few are left."""
    candidates = state.candidates
    assert candidates is not None
    keep = eligible(candidates, state.excluded)
    if not keep.all():
        candidates = candidates.take(keep)
        state.filtered = len(keep) - len(candidates.rows)
    missing = state.request.num_items - len(candidates.rows)
    if missing > 0:
        candidates = _refill(candidates, missing, state.excluded, items)
        if len(candidates.rows) < state.request.num_items:
            state.degrade(FEWER_ITEMS)
    state.candidates = candidates


def _refill(
    candidates: Candidates, missing: int, excluded: np.ndarray, items: ItemTable
) -> Candidates:
    """The candidates followed by up to `missing` popular items that are not among them."""
    taken = np.concatenate([excluded, candidates.keys])
    extra = popular(items, missing + len(taken))
    extra = extra.take(np.flatnonzero(eligible(extra, taken))[:missing])
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
