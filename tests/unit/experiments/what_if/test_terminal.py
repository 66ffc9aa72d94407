"""What `tandem experiments what-if` prints of an answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from services.experiments.declare.metrics import Metric
from services.experiments.what_if.answer import FeedbackCounts, LeftOut, WhatIf
from services.experiments.what_if.off_policy.policy_value import Comparison, on_policy
from services.experiments.what_if.terminal import show

VALUE = on_policy(np.array([0.0, 1.0] * 50), np.arange(100))


def between(low: float, high: float, bias: float = 0.0) -> Comparison:
    return Comparison(
        value=(low + high) / 2, standard_error=0.01, low=low, high=high, bias_bound=bias
    )


ANSWER = WhatIf(
    metric=Metric("clicks", "mean", "click", "higher"),
    estimator="rips",
    passed_over="",
    logged=VALUE,
    target=VALUE,
    difference=between(0.18, 0.22),
    lift=between(0.36, 0.44),
    requests=100,
    users=90,
    feedback=FeedbackCounts(5, 6, 7),
)


def printed(answer: WhatIf) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured:
        show(answer, "an answer", console)
    return captured.get()


@pytest.mark.parametrize(
    ("low", "high", "bias", "sentence"),
    [
        (0.18, 0.22, 0.0, "earn more clicks than what was served, by 0.2000."),
        (-0.22, -0.18, 0.0, "earn less clicks than what was served, by 0.2000."),
        (-0.1, 0.3, 0.0, "The log does not tell the target from what was served."),
        (0.18, 0.22, 0.3, "no larger than what clipping may have done to it"),
    ],
)
def test_the_sentence_is_that_of_the_difference(
    low: float, high: float, bias: float, sentence: str
) -> None:
    assert sentence in printed(replace(ANSWER, difference=between(low, high, bias)))


def test_what_was_left_out_is_told_and_nothing_else() -> None:
    plain = printed(ANSWER)
    assert "left out:" not in plain
    assert "could not be read" not in plain
    assert "lift" in plain
    why = next(iter(LeftOut))
    told = printed(
        replace(ANSWER, lift=None, left_out={why: 1234}, undecodable=5, passed_over="rips: why")
    )
    assert "1,234" in told
    assert why.value in told
    assert "5 records of the log could not be read." in told
    assert "Not by rips: why" in told
    assert "+40.0%" not in told
