"""Why an off-policy estimate is refused."""

from __future__ import annotations


class OffPolicyRefused(ValueError):
    """No estimate can be given; the message says why and what to do."""


class InvalidLog(OffPolicyRefused):
    """The logged arrays contradict themselves or each other."""


class NotInLog(OffPolicyRefused):
    """The log does not hold what the question needs."""


class MissingSupport(OffPolicyRefused):
    """The target policy does what the logging policy never did."""


class TooFewEffectiveSamples(OffPolicyRefused):
    """A few large weights decide the estimate."""

    def __init__(self, effective: float, minimum: float, n: int, largest: float) -> None:
        super().__init__(
            f"The {n:,} logged decisions are worth only {effective:,.1f} for the target policy "
            f"(effective sample size; at least {minimum:,.0f} are required; the largest weight is "
            f"{largest:,.1f}). Log more or explore more, evaluate a target that is closer to the "
            "logging policy, or declare a clip and accept its bias."
        )
        self.effective = effective
        self.minimum = minimum
