"""What the clicks on interleaved lists say: each request's preference for one of the two rankings.

The rules are those of `interleaving`, one per method. A place counts once however often it was
clicked. A list without a click prefers neither: 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.experiments.lists.interleaving import (
    NO_RANK,
    balanced_preference,
    probabilistic_preference,
    team_preference,
)
from services.experiments.measure.fold import METHODS, NOT_RANKED
from services.experiments.measure.sorted_rows import Rows

# Probabilities count in these steps, so that their sums are exact in any order (float64).
_STEPS = float(1 << 20)
_NOBODY = 2  # a team that is neither
_BLOCK = 1 << 16  # lists whose clicks are laid out at once


def preferences(
    methods: NDArray[np.uint8], clicked: Rows, request: NDArray[np.int64]
) -> NDArray[np.float64]:
    """In [-1, 1], above 0 for the second arm, of each list (n,).

    `methods` (n,) by number in METHODS; `clicked` (m,) of fold.PLACE, ascending by list and
    position, no place twice; `request` (m,) the number of each one's list, ascending.
    """
    found = np.zeros(len(methods))
    lists, starts, counts = np.unique(request, return_index=True, return_counts=True)
    for begin in range(0, len(lists), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        found[lists[block]] = _of_lists(
            methods[lists[block]], clicked, starts[block], counts[block]
        )
    return found


def _of_lists(
    methods: NDArray[np.uint8],
    clicked: Rows,
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Of lists whose clicked places are `clicked[start : start + count]`."""
    slots = np.arange(counts.max())
    clicks = slots < counts[:, None]  # (lists, most clicked places), in the order of the list
    places = clicked[np.minimum(starts[:, None] + slots, len(clicked) - 1)]
    teams = np.where(clicks, places["team"], _NOBODY)
    steps = np.rint(places["b_probability"].astype(np.float64) * _STEPS) / _STEPS
    a_ranks, b_ranks = (_ranks(places[name]) for name in ("a_rank", "b_rank"))
    by_method = {
        "team_draft": team_preference(teams, clicks),
        "balanced": balanced_preference(a_ranks, b_ranks, clicks),
        "probabilistic": probabilistic_preference(steps, clicks),
    }
    found = np.zeros(len(methods))
    for method, values in by_method.items():
        found = np.where(methods == METHODS.index(method), values, found)
    return found


def _ranks(recorded: NDArray[np.uint16]) -> NDArray[np.int64]:
    wide = recorded.astype(np.int64)  # before NO_RANK comes in: it does not fit 16 bits
    return np.where(wide == NOT_RANKED, NO_RANK, wide)
