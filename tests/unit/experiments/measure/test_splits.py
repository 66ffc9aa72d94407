"""The split between arms, and an edit of one arm's traffic while the experiment runs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import CLICK, FAILED, Before, DecisionRecord, StageTimes
from services.experiments.assign.assignment import Assigner
from services.experiments.declare.config import Arm, Experiment, ExperimentsConfig, Layer, Ramp
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.declare.splits import known_split, size_of, sizes_in, split_of
from services.experiments.measure.measure import measured
from services.experiments.measure.results import Measured
from services.experiments.report.build import build_report
from services.experiments.report.findings import Coverage, Report
from services.experiments.report.html.page import page
from services.experiments.statistics.arms import Effect
from tests.unit.experiments.messages import T0, Message, event, folded
from tests.unit.experiments.report.test_comparisons import shown

CLICKS = Metric("clicks", "mean", "click", "higher", window_s=60)
CLICKED = Metric("clicked", "binary", "click", "higher", window_s=60)
PER_REQUEST = Metric("per_request", "ratio", "click", "higher", per="request", window_s=60)
REQUESTS = Metric("requests", "mean", "request", "higher")
LATENCY = Metric("latency", "quantile", "latency", "lower", quantile=0.5)
PLAN = Plan(
    Goal(CLICKS, 0.05),
    (Goal(CLICKED, 0.05), Goal(PER_REQUEST, 0.05)),
    (Guardrail(REQUESTS, 0.1), Guardrail(LATENCY, 0.2, observe_s=60)),
    observe_s=600,
    planned_units=4000,
)
LATER = T0 + 10**9
HALF_S = 20_000.0  # when the file is edited
END_S = 40_000.0


def experiment(*traffic: float, plan: Plan = PLAN) -> Experiment:
    """Control and b, half of the users each, of which so many percent are in."""
    control, b = traffic or (100, 100)
    arms = (
        Arm("control", 0, 5000, round(100 * control), {}),
        Arm("b", 5000, 10_000, round(100 * b), {}),
    )
    return Experiment("e", "e", "user", (0, 10_000), arms, {}, True, plan=plan)


def assigner(own: Experiment) -> Assigner:
    return Assigner(ExperimentsConfig((Layer("l", "l", (), (own,)),)))


def lived(
    before: Experiment,
    after: Experiment,
    *,
    users: int = 9000,
    visits: int = 1,
    effect: float = 0.0,
    drift: float = 1.0,
    lost: Mapping[str, float] | None = None,
    late: float = 0.0,
    seed: int = 1,
) -> list[Message]:
    """Users who come at random times and are assigned as by a router, by `before` until HALF_S and
    by `after` then. Clicks per visit are 1 at first, more by `drift` after the edit, and more by
    `effect` in b. `lost`: the share of an arm's users, after the edit, whose records are lost.
    `late`: the share of requests up to 1000 s after the edit that are assigned by the old file."""
    rng = random.Random(seed)
    assigners = assigner(before), assigner(after)
    messages: list[Message] = []
    visited = sorted((rng.random() * END_S, user) for user in range(users) for _ in range(visits))
    for i, (at, user) in enumerate(visited):
        edited = at >= HALF_S
        hears_late = at < HALF_S + 1000 and rng.random() < late
        decided = assigners[edited and not hears_late].assign(f"u{user}", now_ms=T0 + at * 1000)
        arm = decided.messages[0].arm if decided.messages else ""
        if edited and random.Random(user).random() < (lost or {}).get(arm, 0.0):
            continue
        keen = random.Random(-user).random()
        messages.append(
            DecisionRecord(
                request_id=f"r{i}",
                user_id=f"u{user}",
                event_time_ms=T0 + round(at * 1000),
                assignments=decided.messages,
                stage_ms=StageTimes(rank=rng.lognormvariate(2 + drift * edited, 0.3)),
                before=Before(clicks=round(50 * keen)),
                segments=["new"] if user % 3 else [],
            )
        )
        mean = 2 * keen * (1 + drift * edited) + effect * (arm == "b")
        clicks = int(mean) + (rng.random() < mean % 1)
        messages += [event(f"r{i}", at + 1, CLICK, f"u{user}", n) for n in range(clicks)]
    return messages


def seen(messages: Sequence[Message], own: Experiment) -> tuple[Measured, Report]:
    result = measured(folded(messages).settled(), own, LATER)
    return result, build_report("l", own, result, LATER, Coverage())


def unsplit(messages: Sequence[Message]) -> list[Message]:
    """As an older router would have written them."""
    found = []
    for message in messages:
        own = type(message).FromString(message.SerializeToString())
        if isinstance(own, DecisionRecord):
            for assignment in own.assignments:
                assignment.ClearField("split")
        found.append(own)
    return found


# What a split is.


@given(st.integers(1, 99), st.lists(st.integers(0, 10_000), min_size=2, max_size=2))
def test_a_split_is_the_ratio_of_the_sizes_and_survives_as_text(
    weight: int, enrolled: list[int]
) -> None:
    edges = (0, 100 * weight, 10_000)
    arms = [Arm(f"a{i}", edges[i], edges[i + 1], enrolled[i], {}) for i in range(2)]
    empty = Arm("empty", 10_000, 10_000, 5000, {})
    own = replace(experiment(), arms=(arms[0], empty, arms[1]))
    split = split_of(own)
    assert known_split(split, own) == split == split_of(replace(own, arms=tuple(arms)))
    sizes = sizes_in(split, own)
    total, wanted = sum(sizes.values()), sum(map(size_of, arms))
    assert sizes["empty"] == (0 if wanted else size_of(empty))
    for arm in arms:
        assert sizes[arm.name] * wanted == pytest.approx(size_of(arm) * total)


def test_a_ramp_and_the_traffic_of_all_arms_leave_the_split_as_it_is() -> None:
    assert [split_of(experiment(n, n)) for n in (1, 10, 100)] == ["1:1"] * 3
    assert split_of(replace(experiment(5, 5), ramp=Ramp((500, 10_000), 0, 0))) == "1:1"
    assert split_of(experiment(100, 10)) == "10:1"
    stopped = experiment(100, 10)
    stopped = replace(stopped, arms=(stopped.arms[0], replace(stopped.arms[1], stopped=True)))
    assert split_of(stopped) == "10:1"
    assert (
        split_of(experiment(0, 0)) == split_of(replace(experiment(), interleave="team_draft")) == ""
    )


@pytest.mark.parametrize("text", ["", "1", "1:2:3", "0:0", "x", "1:-1", "1:1e3", "1" * 5000])
def test_what_is_no_split_counts_as_that_of_the_file(text: str) -> None:
    own = experiment(100, 10)
    assert known_split(text, own) == "10:1"
    assert sizes_in(text, own) == {"control": 5e7, "b": 5e6}
    messages = lived(own, own, users=300)
    for message in messages:
        if isinstance(message, DecisionRecord):
            for assignment in message.assignments:
                assignment.split = text
    result, found = seen(messages, own)
    assert {key.split for key in result.cells} == {"10:1"}
    assert result.backlog == 0
    assert not any("split" in warning for warning in found.warnings)


def test_every_assignment_says_its_split() -> None:
    own = experiment(100, 10)
    listed = replace(own, allow_list={"listed": "b"})
    assert {
        message.split
        for user in ["listed", *(f"u{i}" for i in range(50))]
        for message in assigner(listed).assign(user, now_ms=0).messages
    } == {"10:1"}
    mixed = replace(own, interleave="team_draft", arms=tuple(
        replace(arm, first=0, end=0, enrolled=10_000) for arm in own.arms
    ))  # fmt: skip
    assert [m.split for m in assigner(mixed).assign("u", now_ms=0).messages] == [""]


# An edit on the way.

EDITS = [((100, 10), (100, 100)), ((100, 100), (100, 10)), ((20, 60), (100, 30))]


def at_the_end(effect: Effect) -> float:
    """The effect in standard errors, beyond 3.29 of which chance brings one in a thousand."""
    low, high = effect.fixed.low, effect.fixed.high
    return float(1.96 * (low + high) / (high - low)) if np.isfinite(high) else 0.0


@pytest.mark.no_cover
@pytest.mark.parametrize(("before", "after"), EDITS)
@pytest.mark.parametrize("visits", [1, 3])
def test_an_edit_of_one_arms_traffic_breaks_no_ratio_and_makes_no_effect(
    before: tuple[float, float], after: tuple[float, float], visits: int
) -> None:
    """Metrics double after the edit, and users come back: those whom the arm had kept waiting, and
    those whom it then keeps out."""
    old, new = experiment(*before), experiment(*after)
    messages = lived(old, new, visits=visits)
    result, found = seen(messages, new)
    assert set(result.splits) == {split_of(old), split_of(new)}
    assert found.sample_ratio is not None
    assert not found.sample_ratio.broken
    assert not any(hop.broken for hop in found.sample_ratio.hops)
    for goal in found.goals:
        assert goal.all_units.units > 500
        for effect in (goal.all_units, goal.cuped, goal.undegraded):
            assert effect is not None
            assert effect.sequence.low < 0 < effect.sequence.high
            assert abs(at_the_end(effect)) < 3.29
        assert goal.verdict not in ("better", "worse")
    assert all(g.safety != "breached" for g in found.guardrails)
    requests, latency = found.guardrails
    assert abs(at_the_end(requests.effect)) < 3.29
    assert abs(at_the_end(latency.effect)) < 3.29
    assert all(segment.effect.p > 0.05 for segment in found.segments)
    (said,) = [
        warning for warning in found.warnings if "split between the arms changed on" in warning
    ]
    assert f"{split_of(old)} since 2024" in said
    assert f"The file says {split_of(new)}." in said
    # What is said of records without splits: every one of these would have been wrong.
    _, careless = seen(unsplit(messages), new)
    assert careless.sample_ratio is not None
    assert careless.sample_ratio.broken
    assert abs(at_the_end(careless.goals[0].all_units)) > 3.29


@pytest.mark.no_cover
def test_what_an_arm_had_kept_waiting_is_left_out_and_said() -> None:
    old, new = experiment(100, 10), experiment(100, 100)
    messages = lived(old, new, visits=3)
    result, found = seen(messages, new)
    assert result.backlog > 1000
    assert any(w.endswith(f"which were left out: {result.backlog:,}.") for w in found.warnings)
    control, b = (
        sum(c.exposed for k, c in result.cells.items() if (k.arm, k.split) == (arm, "1:1"))
        for arm in ("control", "b")
    )
    assert abs(control - b) < 4 * (control + b) ** 0.5


@pytest.mark.no_cover
def test_who_is_observed_when_the_split_changes_is_in_no_comparison() -> None:
    old, new = experiment(100, 100), experiment(100, 10)
    result, found = seen(lived(old, new, visits=3), new)
    cut = [c for k, c in result.cells.items() if k.cut and k.arm == "b"]
    assert sum(c.exposed for c in cut) == found.arms[1].cut > 0
    cells = result.of_splits(("b", "control"), ("b",))
    assert [len(pair) for pair in cells] == [2, 2]
    assert found.goals[0].all_units.units == sum(c.final for pair in cells for c in pair)
    assert found.arms[1].exposed == sum(c.exposed for k, c in result.cells.items() if k.arm == "b")


@pytest.mark.no_cover
def test_an_arm_that_shrinks_loses_no_requests_to_the_other() -> None:
    """Those of the units that it lets go are in no record any more: a day of observation ends with
    the edit for them, and goes on for control's."""
    plan = replace(
        PLAN, observe_s=15_000, guardrails=(Guardrail(REQUESTS, 0.05, observe_s=15_000),)
    )
    old, new = experiment(100, 100, plan=plan), experiment(100, 10, plan=plan)
    messages = lived(old, new, visits=6)
    _, found = seen(messages, new)
    [requests] = found.guardrails
    assert requests.effect.units > 3000
    assert abs(at_the_end(requests.effect)) < 3.29
    _, careless = seen(unsplit(messages), new)
    assert careless.guardrails[0].safety == "breached"


@pytest.mark.no_cover
def test_a_loss_within_one_split_still_breaks_the_ratio() -> None:
    old, new = experiment(100, 50), experiment(100, 100)
    _, found = seen(lived(old, new, users=20_000, lost={"b": 0.2}), new)
    assert found.sample_ratio is not None
    assert found.sample_ratio.broken


def test_a_loss_at_a_hop_within_one_split_is_named() -> None:
    old, new = experiment(100, 50), experiment(100, 100)
    messages = lived(old, new)
    for message in messages:
        if isinstance(message, DecisionRecord) and message.event_time_ms >= T0 + HALF_S * 1000:
            arm = message.assignments[0].arm if message.assignments else ""
            if arm == "b" and int(message.user_id[1:]) % 20 == 0:
                message.outcome = FAILED
    _, found = seen(messages, new)
    assert found.sample_ratio is not None
    served = found.sample_ratio.hops[0]
    assert (served.target, served.broken, found.sample_ratio.broken) == ("served", True, False)


def test_a_real_effect_is_found_across_splits() -> None:
    old, new = experiment(100, 50), experiment(100, 100)
    _, found = seen(lived(old, new, effect=0.5), new)
    goal = found.goals[0]
    assert goal.verdict == "better"
    assert goal.judged.sequence.low < 0.5 < goal.judged.sequence.high
    assert goal.covariate_correlation > 0.4


def test_splits_are_put_together_by_their_precision() -> None:
    """Against the definition, from plain clicks per user."""
    old, new = experiment(100, 10), experiment(100, 100)
    plan = Plan(Goal(CLICKS, 0.05), observe_s=1)
    old, new = replace(old, plan=plan), replace(new, plan=plan)
    messages = lived(old, new)
    result, found = seen(messages, new)
    clicks = {m.request_id: 0 for m in messages if isinstance(m, DecisionRecord)}
    for m in messages:
        if not isinstance(m, DecisionRecord):
            clicks[m.request_id] += 1
    of: dict[tuple[str, str], list[int]] = {}
    for m in messages:
        if isinstance(m, DecisionRecord) and m.assignments:
            of.setdefault((m.assignments[0].split, m.assignments[0].arm), []).append(
                clicks[m.request_id]
            )
    gaps, weights = [], []
    for split in ("10:1", "1:1"):
        b, control = np.array(of[split, "b"]), np.array(of[split, "control"])
        gaps.append(b.mean() - control.mean())
        weights.append(len(b) * len(control) / (len(b) + len(control)))
    effect = found.goals[0].all_units
    assert not any(key.cut for key in result.cells if result.cells[key].exposed > 5)
    assert effect.effect == pytest.approx(np.average(gaps, weights=weights), abs=0.01)
    assert effect.units == pytest.approx(sum(map(len, of.values())), abs=5)


@pytest.mark.no_cover
def test_an_edit_that_is_taken_back_and_routers_that_hear_late_do_no_harm() -> None:
    old, new = experiment(100, 100), experiment(100, 10)
    there = lived(old, new, visits=2, users=6000, late=0.3)
    back = [
        type(m).FromString(m.SerializeToString())
        for m in lived(new, old, visits=2, users=6000, seed=2, late=0.3)
    ]
    for m in back:  # the next day, by the same users
        m.event_time_ms += round(END_S * 1000)
        m.request_id += "-2"
        if not isinstance(m, DecisionRecord):
            m.event_id += "-2"
    result, found = seen([*there, *back], old)
    assert set(result.splits) == {"1:1", "10:1"}
    assert found.sample_ratio is not None
    assert not found.sample_ratio.broken


def test_a_report_of_several_splits_survives_json_and_is_shown() -> None:
    old, new = experiment(100, 10), experiment(100, 100)
    result, found = seen(lived(old, new, users=2000, visits=2), new)
    read = Measured.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    again = build_report("l", new, read, LATER, Coverage())
    assert again.to_json() == found.to_json()
    for text in (" ".join(shown(found).split()), page(found)):
        assert "The split between the arms changed on the way" in text
        assert "10:1 since" in text


def test_an_edit_tunes_no_sequence_anew() -> None:
    """What planned units mean is fixed by the split that came first."""
    old, new = experiment(100, 10), experiment(100, 100)
    messages = [m for m in lived(old, new) if m.event_time_ms < T0 + HALF_S * 1000]
    before, after = (seen(messages, own)[1] for own in (old, new))
    assert before.goals[0].all_units == after.goals[0].all_units
    assert before.sample_ratio == after.sample_ratio
