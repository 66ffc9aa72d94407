"""Stage 4: nothing seen, blocked, excluded or unknown is shown; popular items fill a short list.

Candidate generation leaves the user's excluded items out (`Candidates.screened`). The popular
fallback and the blocked items have not been through it, and an item that was taken out of the
catalogue a moment ago may be among its answer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from protos.tandem.v1.records_pb2 import FEWER_ITEMS
from services.router.request import Candidates, Pool, Query
from services.router.retrieve import popular


class Filter(Protocol):
    """What may not be shown: a function of this shape, and its place in FILTERS."""

    def __call__(self, candidates: Candidates, query: Query) -> np.ndarray | None:
        """bool[n]: which of the candidates may be shown; None: all of them."""


def known(candidates: Candidates, query: Query) -> np.ndarray | None:
    """Those in the catalogue."""
    return candidates.rows > 0


def not_excluded(candidates: Candidates, query: Query) -> np.ndarray | None:
    """Those that the user has not seen and the caller does not exclude."""
    return _not_in(query.user.excluded_keys, candidates)


def not_blocked(candidates: Candidates, query: Query) -> np.ndarray | None:
    """Those that may be shown to anybody."""
    return _not_in(query.blocked, candidates)


def not_removed(candidates: Candidates, query: Query) -> np.ndarray | None:
    """Those that have not been taken out of the catalogue."""
    removed = query.items.removed.take(candidates.rows)
    return ~removed if removed.any() else None


LEFT_TO_THE_ROUTER: tuple[Filter, ...] = (not_blocked, not_removed)  # by candidate generation
FILTERS: tuple[Filter, ...] = (known, not_excluded, *LEFT_TO_THE_ROUTER)


def filter_candidates(pool: Pool, query: Query) -> Pool:
    """Keep what may be shown, at most as many as are worth ranking; refill when too few are."""
    candidates = eligible(pool.candidates, query)
    left, wanted, num_items = len(candidates.rows), query.wanted, query.num_items
    if candidates is pool.candidates and num_items <= left <= wanted:
        return pool
    filtered = len(pool.candidates.rows) - left
    if left > wanted:
        candidates = candidates.take(np.arange(wanted))
    missing = num_items - left
    degradations = pool.degradations
    if missing > 0:
        candidates = _refilled(candidates, missing, query)
        if len(candidates.rows) < num_items:
            degradations = (*degradations, FEWER_ITEMS)
    return pool._replace(candidates=candidates, filtered=filtered, degradations=degradations)


def eligible(candidates: Candidates, query: Query) -> Candidates:
    """Those that every filter lets through which they have not been through."""
    keep = None
    for kept_by in LEFT_TO_THE_ROUTER if candidates.screened else FILTERS:
        kept = kept_by(candidates, query)
        if kept is not None:
            keep = kept if keep is None else keep & kept
    return candidates if keep is None else candidates.take(np.flatnonzero(keep))


def _not_in(keys: np.ndarray, candidates: Candidates) -> np.ndarray | None:
    """bool[n]: whose key is not among the ascending `keys`; None where there are none of those."""
    if not len(keys):
        return None
    # np.isin would sort both sides: four times the time for a few hundred keys.
    nearest = keys.take(keys.searchsorted(candidates.keys), mode="clip")
    return np.asarray(nearest != candidates.keys)


def _refilled(candidates: Candidates, missing: int, query: Query) -> Candidates:
    """The candidates followed by up to `missing` popular items that are not among them."""
    taken = np.sort(candidates.keys)
    enough = missing + len(taken) + len(query.user.excluded) // 8 + len(query.blocked)
    extra = eligible(popular(query, enough), query)
    new = _not_in(taken, extra)
    at = np.arange(len(extra.rows)) if new is None else np.flatnonzero(new)
    extra = extra.take(at[:missing])
    # Scores of two sources are not comparable: popular items go after the retrieved ones.
    floor = candidates.scores.min() if len(candidates.scores) else np.float32(0)
    return candidates.then(extra._replace(scores=floor - 1 + extra.scores))
