"""Who is asked what when retrieval is evaluated: history and target set of each user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.inputs import UserBatch
from models.training.replay import Examples

HISTORY_SHARE = 0.8


@dataclass(frozen=True)
class RetrievalCases:
    """U users at the moment before their first target."""

    batch: UserBatch
    last: np.ndarray  # int64[U]: the user's newest known item row, 0 for none
    seen: list[np.ndarray]  # item rows in the history, to be removed from the list
    targets: list[np.ndarray]  # item rows of the later events that are in the catalogue


def retrieval_cases(
    examples: Examples, from_ms: int, until_ms: int | None = None
) -> RetrievalCases:
    """Cases of the users with events in [from_ms, until_ms), all of whose targets lie in it.

    A user's history is the first 80 % of their choices before `until_ms`, and in any case all
    before `from_ms`; the targets are the following events within the catalogue. A set of
    targets, so the stored order of simultaneous ratings cannot help.
    """
    usable = examples.chosen
    if until_ms is not None:
        usable = usable & (examples.time_ms < until_ms)
    index = np.flatnonzero(usable)
    order = index[np.argsort(examples.user[index], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(examples.user[order])) + 1)
    cuts, last, seen, targets = [], [], [], []
    for events in groups:
        before = int((examples.time_ms[events] < from_ms).sum())
        cut = max(int(HISTORY_SHARE * len(events)), before)
        rows = examples.item[events]
        wanted, old = rows[cut:][rows[cut:] > 0], rows[:cut][rows[:cut] > 0]
        if len(wanted):
            cuts.append(int(events[cut]))
            last.append(int(old[-1]) if len(old) else 0)
            seen.append(old)
            targets.append(wanted)
    at = np.array(cuts, np.int64)
    return RetrievalCases(examples.user_batch(at), np.array(last, np.int64), seen, targets)
