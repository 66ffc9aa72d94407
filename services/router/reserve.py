"""What is kept back of a request's time for answering.

Once the last stage has ended or has run out of time, its end must be noticed, the list be made and
sent. On a machine to itself that takes a millisecond, on one that others use as much as they let
it: each step waits for the processor again.
"""

from __future__ import annotations

ENOUGH = 0.99  # share of the answers that are handed over with the least reserve left
STEP_S = 5e-5
MOST = 0.25  # of the time that a request may take


class Reserve:
    """Grows with each answer handed to gRPC with less than `least_s` left, shrinks with the others.

    It settles where a share ENOUGH of the answers has `least_s` left. For each answer moves it by
    -STEP_S where that is left, else by +STEP_S p / (1 - p), with p = ENOUGH: the mean move is zero
    where P(left) STEP_S = (1 - P(left)) STEP_S p / (1 - p), so where P(left) = p. A larger reserve
    makes P(left) larger, so it is driven there from both sides, however the times are distributed;
    but never below `least_s` nor above MOST of `deadline_s`.
    """

    def __init__(self, least_s: float, deadline_s: float) -> None:
        self._least_s = least_s
        self._most_s = max(MOST * deadline_s, least_s)
        self.seconds = least_s

    def answered(self, left_s: float) -> None:
        """Take in an answer that was handed over `left_s` before its client stops waiting."""
        if left_s >= self._least_s:
            self.seconds = max(self.seconds - STEP_S, self._least_s)
        else:
            grown_s = self.seconds + STEP_S * ENOUGH / (1 - ENOUGH)
            self.seconds = min(grown_s, self._most_s)
