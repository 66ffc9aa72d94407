"""Which requests the models are asked for: those that can be answered whole in time.

Past its capacity a server that takes everything answers nothing: what is late has taken the time
of what was not. So a request comes in only if those at work and itself will be done in AIM of the
time that it has: it is the mean that is aimed at, and who takes two fifths longer is still in
time. What else comes is refused at once, with the arithmetic and with the time after which another
try is worth it.

How long they will take is learned, as seconds per request at work: a request that found n at work,
itself included, and took t says t / n. Behind the router requests wait for one another, so times
grow at most in proportion to what is at work: t(k n) <= k t(n). Hence

- few at work can flatter no router: below half of what would be let in, an answer in time lowers
  the estimate and never raises it. A calm hour does not make the door narrow;
- with t(n) = a + b n the number let in by what n have shown, AIM d n / (a + b n) with d the time
  they had, lies between n and the N at which t(N) = AIM d: what is learned never goes past it.

An answer that lost a stage for lack of time, or came too late, says only that it would have taken
longer than it had; it counts as TOO_LATE times that. Where a stage has a limit of its own, its time
counts by that: half of the stage's limit is half of the request's time.

FEW at work are always let in: fewer at once would not make them faster. So a burst is refused only
beyond what can be answered in time, and a slow answer refuses nobody.
"""

from __future__ import annotations

from services.common.batcher import Overloaded

AIM = 0.7
FEW = 8
START_S = 0.005  # per request, before the first answer
WEIGHT = 0.1
TOO_LATE = 2.0


class Admission:
    """The requests at work, and what they have told about their time."""

    def __init__(self, max_at_work: int) -> None:
        self._max_at_work = max_at_work
        self.at_work = 0
        self.per_request_s = START_S

    def enter(self, allowed_s: float) -> int:
        """Let a request in that has `allowed_s`; to be followed by `leave`.

        How many are at work then, itself included. Raises Overloaded.
        """
        n = self.at_work + 1
        wanted_s = n * self.per_request_s
        if n > self._max_at_work:
            raise Overloaded(
                "max_in_flight",
                f"{self.at_work} requests are at work, at most {self._max_at_work}"
                " (router.max_in_flight)",
                wanted_s,
            )
        if n > FEW and wanted_s > AIM * allowed_s:
            raise Overloaded(
                "deadline",
                f"{self.at_work} requests at work + 1, {self.per_request_s * 1e3:.1f} ms each, take"
                f" {wanted_s * 1e3:.0f} ms; {AIM:.0%} of the {max(allowed_s, 0) * 1e3:.0f} ms left"
                " are too little",
                wanted_s,
            )
        self.at_work = n
        return n

    def leave(self, allowed_s: float, n: int, took_s: float | None) -> None:
        """Let one go that had `allowed_s` and found `n` at work, after `took_s`: infinite where
        something of its answer was lost for lack of time, or of room behind the router; None where
        it was given up or failed, which tells nothing."""
        self.at_work -= 1
        if took_s is None:
            return
        if took_s <= allowed_s:
            sample_s = took_s / n
            if sample_s < self.per_request_s or 2 * n * self.per_request_s > AIM * allowed_s:
                self._learn(sample_s)
        elif n > FEW:
            self._learn(max(TOO_LATE * allowed_s / n, self.per_request_s))

    def _learn(self, sample_s: float) -> None:
        self.per_request_s += WEIGHT * (sample_s - self.per_request_s)
