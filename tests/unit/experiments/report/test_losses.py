"""Arms that are plainly broken or plainly well, from records to what the worker does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protos.tandem.v1.records_pb2 import CLICK, FAILED, IMPRESSION, ExperimentChange
from services.experiments.act.deciding import decide, waits_for
from services.experiments.changes.state import AT_START
from services.experiments.declare.config import INTERLEAVED, Experiment, Ramp
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.measure.measure import measured
from services.experiments.measure.results import ArmDay, Cell, Measured
from services.experiments.report.build import build_report
from services.experiments.report.comparisons import preference_of
from services.experiments.report.findings import Coverage, Report
from services.experiments.report.html.page import page
from services.experiments.report.losses import log_evidence, passing
from services.experiments.statistics.moments import moments_of
from tests.unit.experiments.messages import T0, Message, decision, event, folded
from tests.unit.experiments.report.test_comparisons import LATER, MIX, experiment, shown

ERRORS = Metric("error_share", "ratio", "error", "lower", per="request")
DEGRADED = Metric("degraded_share", "ratio", "degraded", "lower", per="request")
SLOW = Metric("latency_p99", "quantile", "latency", "lower", quantile=0.99)
MEAN_ERRORS = Metric("errors", "mean", "error", "lower")
ANY_ERROR = Metric("any_error", "binary", "error", "lower")
REQUESTS = Metric("requests", "mean", "request", "higher")
LIKED = Metric("liked", "binary", "like", "higher")
UNITS = 400


def guarded(*guardrails: Guardrail, ramp: Ramp | None = None) -> Experiment:
    return replace(experiment(Plan(guardrails=guardrails, observe_s=600)), ramp=ramp)


def records(of_b: Callable[[int], dict[str, Any]], requests: int = 2) -> list[Message]:
    """Control answers everything in 20 ms."""
    found: list[Message] = []
    for arm in ("control", "b"):
        for i in range(UNITS):
            how = {"ms": 20.0} | (of_b(i) if arm == "b" else {})
            found += [
                decision(f"r{arm}{i}-{k}", i, f"{arm}{i}", arm, **how) for k in range(requests)
            ]
    return found


def seen(own: Experiment, messages: list[Message], as_of_ms: float = LATER) -> Report:
    result = measured(folded(messages).settled(), own, as_of_ms)
    return build_report("l", own, result, as_of_ms, Coverage())


def done(own: Experiment, found: Report) -> list[tuple[str, str]]:
    changes = decide(own, AT_START, found, found.as_of_ms, 10**6)
    return [(ExperimentChange.Kind.Name(c.kind), c.arm) for c in changes]


FAILS: dict[str, Any] = {"outcome": FAILED}
DEGRADES: dict[str, Any] = {"degraded": True}
STOPPED = [("ARM_STOPPED", "b")]


@pytest.mark.parametrize(
    ("metric", "of_b"),
    [
        (ERRORS, FAILS),
        (MEAN_ERRORS, FAILS),
        (ANY_ERROR, FAILS),
        (DEGRADED, DEGRADES),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_an_arm_that_fails_or_degrades_every_request_is_stopped(
    metric: Metric, of_b: dict[str, Any], absolute: bool
) -> None:
    own = guarded(Guardrail(metric, 0.01, absolute))
    found = seen(own, records(lambda i: of_b))
    (guardrail,) = found.guardrails
    assert guardrail.safety == "breached"
    assert done(own, found) == STOPPED
    assert page(replace(found, first_ms=0.0, last_ms=1.0))
    assert "BREACHED by b" in shown(found)


@pytest.mark.parametrize("metric", [ERRORS, MEAN_ERRORS, ANY_ERROR, REQUESTS, DEGRADED])
def test_what_never_varies_in_either_arm_is_shown_to_hold(metric: Metric) -> None:
    relative = metric is REQUESTS
    ramp = Ramp((100, 10_000), 1, 1, "holds")
    own = guarded(Guardrail(metric, 0.1 if relative else 0.02, not relative), ramp=ramp)
    found = seen(own, records(lambda i: {}))
    assert found.guardrails[0].safety == "holds"
    assert done(own, found) == [("RAMP_ADVANCED", "")]


def test_a_constant_latency_is_compared_as_any_other() -> None:
    own = guarded(Guardrail(SLOW, 0.2))
    found = seen(own, records(lambda i: {"ms": 250}))
    assert found.guardrails[0].safety == "breached"
    assert seen(own, records(lambda i: {})).guardrails[0].safety == "holds"


def test_a_ramp_waits_for_a_guardrail_that_cannot_be_judged_although_units_are_there() -> None:
    """No like per click without a click. Too few units yet are another thing: they will come."""
    ramp = Ramp((100, 10_000), 1, 1)
    per_click = Metric("likes_per_click", "ratio", "like", "higher", per="click")
    own = guarded(Guardrail(per_click, 0.1), ramp=ramp)
    messages = records(lambda i: {})
    clicks = [
        event(f"r{arm}{i}-0", i, kind, f"{arm}{i}")
        for arm, kind in (("control", CLICK), ("b", IMPRESSION))
        for i in range(UNITS)
    ]
    blind = seen(own, [*messages, *clicks])
    assert blind.guardrails[0].undecidable
    assert done(own, blind) == []
    said = waits_for(own, AT_START, blind, LATER, 10**6)
    assert said == "It waits for guardrails: likes_per_click of b (cannot be judged)."
    assert "cannot be judged" in blind.guardrails[0].sentence
    young = seen(own, [*messages, *clicks], as_of_ms=T0 + 660_000 + 1_800_000)
    assert not young.guardrails[0].undecidable
    assert done(own, young) == [("RAMP_ADVANCED", "")]


@pytest.mark.parametrize(("of_b", "hop"), [(FAILS, "served"), (DEGRADES, "undegraded")])
def test_an_arm_that_serves_nobody_is_stopped_a_minute_later_without_any_guardrail(
    of_b: dict[str, Any], hop: str
) -> None:
    own = guarded(ramp=Ramp((100, 10_000), 1, 1))
    own = replace(own, plan=replace(own.plan, observe_s=86_400))
    found = seen(own, records(lambda i: of_b), as_of_ms=T0 + 1000 * (UNITS + 61))
    assert hop in {broken.hop for broken in found.broken_hops}
    (change,) = decide(own, AT_START, found, found.as_of_ms, 10**6)
    assert (change.kind, change.arm) == (ExperimentChange.ARM_STOPPED, "b")
    assert f"({hop})" in change.reason
    evidence = json.loads(change.evidence)["broken_hops"]
    assert [UNITS, UNITS] in [e["entered"] for e in evidence if e["hop"] == hop]
    assert "arms that do not lose their units" in waits_for(own, AT_START, found, LATER, 10**6)
    assert "stop it" in page(replace(found, first_ms=0.0, last_ms=1.0))


def test_an_arm_whose_feedback_is_lost_is_stopped_and_one_that_is_liked_less_is_not() -> None:
    liked = replace(LIKED, window_s=60)
    own = experiment(Plan(Goal(liked, 0.1), observe_s=600))
    messages = records(lambda i: {})

    def clicked(arm: str, every: int) -> list[Message]:
        return [event(f"r{arm}{i}-0", i, CLICK, f"{arm}{i}") for i in range(0, UNITS, every)]

    lost = seen(own, [*messages, *clicked("control", 1)])
    assert [broken.hop for broken in lost.broken_hops] == ["joined"]
    assert done(own, lost) == STOPPED
    less = seen(own, [*messages, *clicked("control", 2), *clicked("b", 3)])
    assert done(own, less) == []


def test_an_arm_that_had_no_traffic_at_first_is_watched_like_any_other() -> None:
    splits = [(passing(100, 5), passing(900, 880)), (passing(500, 30), passing(500, 490))]
    assert log_evidence(splits, 0.9, share=0.0) == log_evidence(splits, 0.9, share=0.5) > 5


def test_degradation_that_a_guardrail_allows_stops_nobody() -> None:
    """A tenth of the requests, and so most units."""
    messages = [
        decision(f"r{arm}{i}-{k}", i, f"{arm}{i}", arm, degraded=arm == "b" and k == i % 10)
        for arm in ("control", "b")
        for i in range(UNITS)
        for k in range(10)
    ]
    assert done(guarded(), seen(guarded(), messages)) == STOPPED
    allowed = guarded(Guardrail(DEGRADED, 0.2, absolute=True))
    assert done(allowed, seen(allowed, messages)) == []


def test_control_that_fails_stops_no_treatment() -> None:
    messages = [
        decision(f"r{arm}{i}", i, f"{arm}{i}", arm, outcome=FAILED if arm == "control" else 0)
        for arm in ("control", "b")
        for i in range(UNITS)
    ]
    found = seen(guarded(Guardrail(ERRORS, 0.01, absolute=True)), messages)
    assert done(guarded(), found) == []
    assert any("never got an answer" in warning for warning in found.warnings)


def test_a_goal_that_every_unit_of_one_arm_reaches_and_none_of_the_other_is_decided() -> None:
    own = experiment(Plan(Goal(ANY_ERROR, 0.1), observe_s=600))
    (goal,) = seen(own, records(lambda i: FAILS)).goals
    assert goal.verdict == "worse"
    assert goal.all_units.effect == 1
    assert 0.9 < goal.all_units.fixed.low < 1


def test_a_goal_that_every_unit_reaches_in_both_arms_shows_no_difference() -> None:
    always = {arm: moments_of([1.0] * UNITS, [0.0] * UNITS) for arm in ("control", "b")}
    cells = {
        ArmDay(arm, 1): Cell(
            exposed=UNITS, final=UNITS, joined=UNITS, undegraded=UNITS, served=UNITS,
            statistics={"liked": of},
        )
        for arm, of in always.items()
    }  # fmt: skip
    own = experiment(Plan(Goal(LIKED, 0.1)))
    found = build_report("l", own, Measured(cells, decisions=1), LATER, Coverage())
    assert found.goals[0].verdict == "no difference that matters"
    assert all(day.standard_error > 0 for day in found.days)


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_preference_that_all_units_share_is_found(value: float) -> None:
    cell = Cell(exposed=200, final=200, preference=moments_of([value] * 200), lists=200)
    found = preference_of(MIX, Measured({ArmDay(INTERLEAVED, 1): cell}), 1000)
    assert found is not None
    assert found.verdict == ("b is better" if value > 0 else "a is better")
    assert found.value == value


def test_guardrails_find_harm_as_soon_whatever_is_planned_for_the_goals() -> None:
    messages = records(lambda i: FAILS if i % 20 == 0 else {})
    found = [
        seen(
            experiment(
                Plan(guardrails=(Guardrail(ERRORS, 0.001, True),), observe_s=600, planned_units=n)
            ),
            messages,
        )
        for n in (100, 10_000_000)
    ]
    assert found[0].guardrails[0].log_e == found[1].guardrails[0].log_e
