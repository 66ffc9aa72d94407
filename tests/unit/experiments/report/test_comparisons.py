"""What is compared with what: covariates, segments, stopped arms, interleaving; and the view."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats

from protos.tandem.v1.records_pb2 import CLICK, FAILED, Before
from services.experiments.changes.state import Epoch
from services.experiments.declare.config import INTERLEAVED, Arm, Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.measure.measure import measured
from services.experiments.measure.results import ArmDay, Cell, Measured, SegmentPart
from services.experiments.report.build import build_report
from services.experiments.report.comparisons import preference_of
from services.experiments.report.findings import ChangeReport, Coverage, RampReport, Report
from services.experiments.report.terminal import show
from services.experiments.statistics.moments import moments_of
from services.experiments.statistics.multiple import benjamini_hochberg
from tests.domains import FILMS
from tests.unit.experiments.messages import (
    T0,
    Message,
    decision,
    event,
    folded,
    interleaving,
)

CLICKS = Metric("clicks", "mean", "click", "higher", window_s=60)
ERRORS = Metric("errors", "mean", "error", "lower")
PLAN = Plan(Goal(CLICKS, 0.05), observe_s=600, planned_units=2000)
LATER = T0 + 10**9
DAY = 20_000


def experiment(plan: Plan = PLAN, *names: str) -> Experiment:
    names = names or ("control", "b")
    edges = [round(10_000 * i / len(names)) for i in range(len(names) + 1)]
    arms = tuple(
        Arm(name, first, end, 10_000, {})
        for name, first, end in zip(names, edges[:-1], edges[1:], strict=True)
    )
    return Experiment("e", "e", "user", (0, 10_000), arms, {}, True, plan=plan)


PREFERRED = Plan(observe_s=600, planned_units=2000, preference_window_s=60)
MIX = replace(experiment(PREFERRED, "old", "new"), interleave="team_draft")


def reported(
    messages: Sequence[Message],
    own: Experiment,
    epochs: Sequence[Epoch] = (),
    as_of_ms: float = LATER,
) -> Report:
    result = measured(folded(messages).settled(), own, as_of_ms, epochs)
    return build_report("l", own, result, as_of_ms, Coverage())


# Covariates.


def test_cuped_removes_the_share_rho_squared_of_the_variance_from_records_to_report() -> None:
    rng = np.random.default_rng(5)
    messages: list[Message] = []
    rows: dict[str, list[tuple[float, float]]] = {"control": [], "b": []}
    for i in range(1600):
        arm, keen = ("control", "b")[i % 2], rng.exponential()
        before = int(rng.poisson(8 * keen))
        clicks = int(rng.poisson(2 * keen + 0.3 * (arm == "b")))
        user = f"u{i}"
        messages.append(decision(f"r{i}", i, user, arm, before=Before(clicks=before)))
        messages += [event(f"r{i}", i + 1, CLICK, user, n) for n in range(clicks)]
        rows[arm].append((clicks, math.log1p(before)))
    (goal,) = reported(messages, experiment()).goals
    within = np.concatenate([np.array(r) - np.mean(r, axis=0) for r in rows.values()])
    rho = float(np.corrcoef(within.T)[0, 1])
    assert rho > 0.5
    assert goal.covariate_correlation == pytest.approx(rho, abs=0.01)
    assert goal.cuped is not None
    for name in ("fixed", "sequence"):
        narrow, wide = (getattr(effect, name) for effect in (goal.cuped, goal.all_units))
        ratio = ((narrow.high - narrow.low) / (wide.high - wide.low)) ** 2
        assert ratio == pytest.approx(1 - rho**2, rel=0.02)
    assert goal.judged is goal.cuped
    slope = float(np.cov(within.T)[0, 1] / np.var(within[:, 1], ddof=1))
    means = {arm: np.mean(each, axis=0) for arm, each in rows.items()}
    gap = means["b"] - means["control"]
    assert goal.cuped.effect == pytest.approx(gap[0] - slope * gap[1], abs=1e-5)
    assert goal.all_units.effect == pytest.approx(gap[0], abs=1e-9)


def goal_of(y: Mapping[str, NDArray[np.float64]], x: Mapping[str, NDArray[np.float64]]) -> Report:
    cells = {
        ArmDay(arm, DAY): Cell(
            exposed=(n := len(y[arm])), final=n, joined=n, undegraded=n, served=n,
            statistics={"clicks": moments_of(y[arm], x[arm])},
        )
        for arm in y
    }  # fmt: skip
    return build_report("l", experiment(), Measured(cells, decisions=1), LATER, Coverage())


def test_the_verdict_is_that_of_the_covariate_even_where_it_is_the_less_pleasing() -> None:
    rng = np.random.default_rng(1)
    noise = {arm: rng.normal(size=1000) for arm in ("control", "b")}
    past = {arm: rng.normal(size=1000) for arm in ("control", "b")}
    past["b"] += 0.3  # as luck has it, the arm's users were keener already
    goal = goal_of({arm: 2 + noise[arm] + 2 * past[arm] for arm in past}, past).goals[0]
    assert goal.all_units.p < 0.05
    assert goal.cuped is not None
    assert goal.cuped.p > 0.05
    assert goal.adjusted_p == goal.cuped.p
    assert goal.verdict == "undecided"


def test_without_any_history_cuped_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    y = {arm: rng.normal(2, 1, 500) for arm in ("control", "b")}
    goal = goal_of(y, {arm: np.zeros(500) for arm in y}).goals[0]
    assert goal.covariate_correlation == 0
    assert goal.cuped is not None
    assert goal.cuped.effect == pytest.approx(goal.all_units.effect)
    assert goal.cuped.p == pytest.approx(goal.all_units.p)


# Segments.


def test_segments_are_compared_by_themselves_and_adjusted_for_their_number() -> None:
    rng = np.random.default_rng(3)
    cells = {}
    for arm, lift in (("control", 0.0), ("b", 0.5)):
        parts = {
            name: SegmentPart(500, moments_of(rng.normal(2 + extra, 1, 500), np.zeros(500)))
            for name, extra in (("new", lift), ("old", 0.0))
        }
        merged = parts["new"].statistic + parts["old"].statistic  # type: ignore[operator]
        cells[ArmDay(arm, DAY)] = Cell(
            exposed=1000,
            final=1000,
            joined=1000,
            undegraded=1000,
            served=1000,
            statistics={"clicks": merged},
            segments=parts,
        )
    found = build_report(
        "l", experiment(), Measured(cells, decisions=1), LATER, Coverage()
    ).segments
    assert [(s.segment, s.arm, s.effect.units) for s in found] == [
        ("new", "b", 1000), ("old", "b", 1000)
    ]  # fmt: skip
    new, old = found
    assert new.effect.sequence.low > 0 > old.effect.sequence.low
    expected = benjamini_hochberg([new.effect.p, old.effect.p])
    assert [new.adjusted_p, old.adjusted_p] == pytest.approx(expected.tolist())


def test_a_segment_of_one_arm_only_is_shown_as_not_known() -> None:
    messages: list[Message] = [
        decision("r1", 0, "u", segments=["new"]), decision("r2", 0, "v", "b")
    ]  # fmt: skip
    (segment,) = reported(messages, experiment()).segments
    assert segment.effect.sequence.high == math.inf
    assert segment.adjusted_p == 1


# Stopped arms.


def stream(arms: Sequence[str], begin: int, end: int, clicks: float) -> list[Message]:
    """A new unit every second in each arm, all of them with so many clicks more or less."""
    messages: list[Message] = []
    for i in range(begin, end):
        for arm in arms:
            user = f"{arm}{i}"
            messages.append(decision(f"r-{user}", i, user, arm))
            count = int(clicks + (i % 3 - 1))
            messages += [event(f"r-{user}", i, CLICK, user, n) for n in range(count)]
    return messages


def test_units_first_exposed_after_an_arms_stop_count_in_no_comparison_with_it() -> None:
    own = experiment(replace(PLAN, observe_s=1), "control", "b", "c")
    # After b's stop the world changes for everybody; nothing differs between arms at any time.
    messages = [*stream(("control", "b", "c"), 0, 200, 2), *stream(("control", "c"), 200, 600, 9)]
    epochs = (Epoch(-math.inf), Epoch(T0 + 200_000.0, frozenset({"b"})))
    straggler = decision("late", 300, "late", "b")  # a router that had not heard of it
    found = reported([*messages, straggler], own, epochs)
    b, c = found.goals
    assert (b.all_units.units, c.all_units.units) == (400, 1200)
    assert b.all_units.effect == c.all_units.effect == 0
    assert [arm.exposed for arm in found.arms] == [600, 200, 600]
    assert found.sample_ratio is not None
    assert (found.sample_ratio.broken, found.sample_ratio.observed) == (False, (600, 200, 600))
    assert found.sample_ratio.expected == pytest.approx((3 / 7, 1 / 7, 3 / 7), abs=1e-4)
    careless = reported(messages, own)
    assert careless.sample_ratio is not None
    assert careless.sample_ratio.broken
    assert careless.goals[0].all_units.effect < -1


def test_a_resumed_arm_gets_no_backlog_of_the_units_that_came_while_it_was_stopped() -> None:
    """Control's units of that time are first exposed in it. Those of b are first exposed when b
    runs again, as soon as they come back: they are no match for control's newcomers."""
    own = experiment(replace(PLAN, observe_s=1), "control", "b")
    both = "control", "b"
    paused: list[Message] = [
        decision(f"p{i}", i, f"b{i}", overridden=True) for i in range(200, 3200)
    ]
    back = [
        decision(f"back-{arm}{i}", 3200 + i / 10, f"{arm}{i}", arm)
        for arm in both
        for i in range(200, 3200)
    ]
    messages = [
        *stream(both, 0, 200, 2),
        *stream(("control",), 200, 3200, 2),
        *paused,
        *back,
        *stream(both, 3200, 4200, 2),
    ]
    epochs = (
        Epoch(-math.inf),
        Epoch(T0 + 200_000.0, frozenset({"b"})),
        Epoch(T0 + 3_200_000.0),
    )
    found = reported(messages, own, epochs)
    assert found.sample_ratio is not None
    assert (found.sample_ratio.observed, found.sample_ratio.broken) == ((4200, 1200), False)
    [b] = found.goals
    assert (b.all_units.units, b.all_units.effect) == (2400, 0)
    assert any("overridden" in w and w.endswith(": 3,000.") for w in found.warnings)


def test_units_that_a_stop_cut_short_are_left_out_in_both_arms_and_said() -> None:
    own = experiment(replace(PLAN, observe_s=100), "control", "b")
    messages = stream(("control", "b"), 0, 200, 2)
    epochs = (Epoch(-math.inf), Epoch(T0 + 200_000.0, frozenset({"b"})))
    found = reported(messages, own, epochs)
    assert found.goals[0].all_units.units == 2 * 101
    assert [(a.exposed, a.final, a.cut) for a in found.arms] == [(200, 200, 0), (200, 101, 99)]
    assert any("cut short" in w and w.endswith(": 99.") for w in found.warnings)


def test_the_ratio_is_tested_within_epochs_and_the_evidence_multiplies() -> None:
    own = experiment(PLAN, "control", "b")
    epochs = (Epoch(-math.inf), Epoch(10.0, frozenset({"b"})), Epoch(20.0))

    def p(*sizes: tuple[int, int, int]) -> float:
        cells = {
            ArmDay(arm, DAY, epoch, epoch): Cell(exposed=n)
            for epoch, *counts in sizes
            for arm, n in zip(("control", "b"), counts, strict=True)
        }
        found = build_report(
            "l", own, Measured(cells, decisions=1, epochs=epochs), LATER, Coverage()
        )
        assert found.sample_ratio is not None
        return found.sample_ratio.p

    alone = p((0, 5000, 4600))
    assert 1e-3 < alone < 1
    assert p((0, 5000, 4600), (1, 7000, 3)) == alone  # b was stopped: nothing to compare
    assert p((0, 5000, 4600), (2, 5000, 4600)) == pytest.approx(alone**2)


def test_an_arm_stopped_by_hand_is_not_tested_and_that_is_said() -> None:
    own = experiment(PLAN, "control", "b")
    own = replace(own, arms=(own.arms[0], replace(own.arms[1], stopped=True)))
    found = reported(stream(("control",), 0, 50, 1), own)
    assert found.sample_ratio is None
    assert any("the log does not say since when: b" in w for w in found.warnings)


# Serving.


def failing(share: float) -> list[Message]:
    """Of arm b so many units never get an answer."""
    return [
        decision(f"r{arm}{i}", i, f"{arm}{i}", arm,
                 outcome=FAILED if arm == "b" and i % 100 < 100 * share else 0)
        for arm in ("control", "b")
        for i in range(1000)
    ]  # fmt: skip


def test_units_without_any_answer_are_a_hop_that_names_the_arm() -> None:
    found = reported(failing(0.05), experiment())
    assert [arm.served for arm in found.arms] == [1000, 950]
    assert found.sample_ratio is not None
    served = found.sample_ratio.hops[0]
    assert (served.source, served.target, served.lost) == ("assigned", "served", (0, 50))
    assert served.broken
    assert not found.sample_ratio.broken
    assert any(w.startswith("Units that never got an answer differ") for w in found.warnings)


def test_an_error_guardrail_is_breached_a_minute_after_the_units_came() -> None:
    guardrail = Guardrail(ERRORS, 0.01, absolute=True, observe_s=60)
    own = experiment(replace(PLAN, guardrails=(guardrail,), observe_s=86_400))
    last_ms = T0 + 999_000
    found = reported(failing(0.1), own, as_of_ms=last_ms + 60_000)
    assert found.guardrails[0].safety == "breached"
    assert found.guardrails[0].observe_s == 60
    assert found.guardrails[0].effect.units == 2000
    assert [arm.final for arm in found.arms] == [0, 0]
    assert found.goals[0].verdict == "undecided"
    assert {day.metric for day in found.days} == {"errors"}


# Interleaving.


def test_a_preference_is_found_from_records_to_report() -> None:
    messages: list[Message] = []
    for i in range(400):
        record = decision(f"r{i}", i, f"u{i}", INTERLEAVED, experiment="e")
        record.item_ids.extend(["x", "y"])
        record.interleaving.CopyFrom(interleaving("team_draft", [i % 2, 1 - i % 2]))
        mine = "y" if i % 2 == 0 else "x"  # the item of the second arm
        theirs = "x" if mine == "y" else "y"
        messages.append(record)
        messages.append(event(f"r{i}", i, CLICK, f"u{i}", item=mine if i % 5 else theirs))
    found = reported(messages, MIX).preference
    assert found is not None
    assert (found.units, found.requests) == (400, 400)
    assert found.value == pytest.approx((320 - 80) / 400)
    assert found.verdict == "b is better"
    assert "users prefer new's ranking to old's" in found.sentence
    fixed = stats.t.interval(
        0.95, 399, loc=found.value, scale=math.sqrt((1 - found.value**2) * 400 / 399 / 400)
    )
    assert (found.fixed.low, found.fixed.high) == pytest.approx(fixed, rel=1e-6)


def test_an_interleaving_experiment_has_one_row_of_units_and_no_goals() -> None:
    record = decision("r", 0, "u", INTERLEAVED, experiment="e")
    found = reported([record], MIX)
    assert [(arm.arm, arm.exposed) for arm in found.arms] == [(INTERLEAVED, 1)]
    assert found.goals == found.guardrails == found.segments == ()
    assert found.sample_ratio is None
    assert found.window_s == 60  # of the clicks on its lists
    assert found.preference is not None
    assert found.preference.sentence.startswith("preference: nothing can be said yet.")
    assert not any("does not know" in warning for warning in found.warnings)


@pytest.mark.parametrize(("drift", "low", "high"), [(0.0, 0.0, 0.096), (0.25, 0.9, 1.0)])
def test_peeking_at_a_preference_alarms_as_seldom_as_promised_and_finds_a_real_one(
    drift: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(11)
    runs, units = 200, 800
    alarms = 0
    for _ in range(runs):
        values = rng.choice([-1.0, 0.0, 1.0], units, p=[0.3 - drift / 2, 0.4, 0.3 + drift / 2])
        for seen in range(120, units + 1, 40):
            cell = Cell(exposed=seen, final=seen, preference=moments_of(values[:seen]), lists=seen)
            found = preference_of(MIX, Measured({ArmDay(INTERLEAVED, DAY): cell}), units)
            assert found is not None
            if found.verdict != "undecided":
                alarms += found.verdict == "b is better" or not drift
                break
    # Under no drift at most 5 % and three Monte-Carlo errors.
    assert low <= alarms / runs <= high


# Shown.


def test_everything_fits_a_terminal_of_120_columns() -> None:
    guardrails = (Guardrail(ERRORS, 0.01, absolute=True, observe_s=60),)
    own = experiment(replace(PLAN, guardrails=guardrails))
    changed = {"rerank.like_weight": 0.75, "ranking.model": "[bold]a_model_with_quite_a_long_name"}
    arms = (own.arms[0], replace(own.arms[1], parameters=changed))
    own = replace(own, arms=arms, specs=FILMS.parameters)
    messages: list[Message] = []
    for i in range(600):
        arm = ("control", "b")[i % 2]
        segments, before = (["new"] if i % 3 else ["mobile"]), Before(clicks=i % 7)
        messages.append(decision(f"r{i}", i, f"u{i}", arm, segments=segments, before=before))
        messages += [event(f"r{i}", i, CLICK, f"u{i}", n) for n in range(i % 7 // 2)]
    result = measured(folded(messages).settled(), own, LATER)
    found = build_report(
        "l",
        own,
        result,
        LATER,
        Coverage(),
        changes=(
            ChangeReport(
                at_ms=T0, actor="worker", kind="RAMP_ADVANCED", arm="", reason="All gates held."
            ),
        ),
        ramp=RampReport((1, 5, 25, 50), 1, float(T0), "900 of 1,000 units are final."),
    )
    text = shown(found)
    assert max(map(len, text.splitlines())) <= 120
    assert "production defaults" in " ".join(text.split())
    assert "rerank.like_weight" in text
    assert "[bold]a_model" in text
    assert "…" not in text
    for part in (
        "without CUPED",
        "clicks by segment (exploratory)",
        "1 % → [5 %] → 25 % → 50 %. 900 of 1,000 units are final.",
        "worker: ramp advanced. All gates held.",
        "(CUPED)",
        "for guardrails with a time of their own: 60 s",
    ):
        assert part in " ".join(text.split())
    mixed = shown(reported([decision("r", 0, "u", INTERLEAVED, experiment="e")], MIX))
    assert "Preference (team_draft), from -1 (old) to +1 (new)" in mixed


def shown(found: Report) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        show(found, console)
    return captured.get()
