"""Where an item stands that the ranking model does not know: behind all that it knows.

It is one that the catalogue lacks, or that came to the catalogue since the model was trained.

What a model gives for its unknown row is at best the mean of its catalogue, which is more than most
of a catalogue with a long tail gets, and in artifacts of older trainings it is no estimate at all
(near 1). The service therefore takes no model's word for it. Zero for every task is a score that no
known item has, under which no increasing value formula lifts an item above a known one, and by
which the router tells the item, also from the record of the decision.
"""

from __future__ import annotations

import numpy as np


def unknown_last(scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Set the probabilities float32[n, tasks] of the items that are `unknown` bool[n] to 0.

    Returns their places, int64, ascending.
    """
    at = np.flatnonzero(unknown)
    if len(at):
        scores[at] = 0.0
    return at
