"""The forecast before an experiment: its numbers, where they come from, and when it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner, Result

from protos.tandem.v1.records_pb2 import CLICK, Assignment, DecisionRecord, FeedbackEvent
from services.experiments.cli.experiments import app
from services.experiments.declare.config import Arm, Experiment, Ramp
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.declare.targeting import Condition
from services.experiments.measure.fold import Settled
from services.experiments.measure.results import DAY_MS
from services.experiments.plan import planning
from services.experiments.plan.baseline import Baseline, ProductionFold, arrivals, baseline
from services.experiments.plan.planning import (
    CannotPlan,
    Forecast,
    forecast,
    from_log,
    too_little,
    wanted,
)
from services.experiments.plan.terminal import show
from services.experiments.plan.traffic import along, come_by, days_until, traffics

CLICKS = Metric("clicks", "mean", "click", "higher", window_s=100)
LIKED = Metric("liked", "binary", "like", "higher", window_s=100)
DEGRADED = Metric("degraded", "ratio", "degraded", "lower", per="request")
PLAN = Plan(Goal(CLICKS, 0.05), (Goal(LIKED, 0.1),), (Guardrail(DEGRADED, 0.01, True),), 1000)
T0 = 20_000 * DAY_MS
LATER = T0 + 90 * DAY_MS


def experiment(
    plan: Plan = PLAN, weights: tuple[int, ...] = (50, 50), **more: object
) -> Experiment:
    arms, first = [], 0
    for name, weight in zip(("control", "b", "c"), weights, strict=False):
        arms.append(Arm(name, first * 100, (first + weight) * 100, 10_000, {}))
        first += weight
    made = Experiment("e", "e", "user", (0, 10_000), tuple(arms), {}, True, plan=plan)
    return replace(made, **more)  # type: ignore[arg-type]


def by_hand(correlation: float | None = None) -> dict[planning.Key, Baseline]:
    return {
        ("clicks", 1000): Baseline(CLICKS, 2.0, 3.0, None, correlation),
        ("liked", 1000): Baseline(LIKED, 0.2, 0.4, None, None),
        ("degraded", 60): Baseline(DEGRADED, 0.0, 0.1, None, None),
    }


def planned(own: Experiment | None = None, arriving: tuple[float, ...] = (500.0,)) -> Forecast:
    return forecast(own or experiment(), by_hand(), arriving)


# Units.


def test_a_test_looked_at_once_needs_what_the_textbook_says() -> None:
    clicks, liked, degraded = planned().metrics
    for found, variances, effect, alpha in (
        (clicks, 3.0**2 * (1 + 1.05**2), 0.1, 0.05),  # every value 5 % larger in treatment
        (liked, 0.2 * 0.8 + 0.22 * 0.78, 0.02, 0.05),
        (degraded, 2 * 0.1**2, 0.01, 0.05),
    ):
        z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(0.8)
        assert found.effect == pytest.approx(effect)
        assert found.fixed.units == pytest.approx(z**2 * 2 * variances / effect**2, abs=2)
        assert 1.3 < found.sequential.units / found.fixed.units < 2
        assert found.fixed.units < found.expected_units < found.sequential.units


def test_metrics_that_are_adjusted_together_are_planned_at_the_strictest_level() -> None:
    own = experiment(replace(PLAN, secondary=(Goal(LIKED, 0.1),) * 2), (40, 30, 30))
    levels = {(m.role, m.arm): m.alpha for m in planned(own).metrics}
    assert levels == {
        ("primary", "b"): 0.025,
        ("primary", "c"): 0.025,
        ("secondary", "b"): 0.0125,
        ("secondary", "c"): 0.0125,
        ("guardrail", "b"): 0.05,
        ("guardrail", "c"): 0.05,
    }


def test_units_are_those_of_all_arms() -> None:
    """A treatment of a fifth, compared to a control of two: three fifths of all units."""
    plan = Plan(guardrails=(Guardrail(DEGRADED, 0.01, True),), observe_s=1000)
    two = forecast(experiment(plan, (67, 33)), by_hand(), ()).metrics[0]
    three = forecast(experiment(plan, (40, 20, 40)), by_hand(), ()).metrics[0]
    assert three.fixed.units == pytest.approx(two.fixed.units / 0.6, rel=0.01)


def test_cuped_saves_the_square_of_the_correlation() -> None:
    found = forecast(experiment(), by_hand(0.6), (500.0,)).metrics[0]
    assert found.fixed_cuped is not None
    assert found.sequential_cuped is not None
    for plain, less in (
        (found.fixed, found.fixed_cuped),
        (found.sequential, found.sequential_cuped),
    ):
        assert less.units == pytest.approx(0.64 * plain.units, rel=2e-3)
        assert less.days[0] < plain.days[0]


def test_a_guardrail_of_what_never_happens_is_forecast_by_the_rule_of_three() -> None:
    guardrail = wanted(experiment())[-1]
    assert guardrail.role == "guardrail"
    never = Baseline(DEGRADED, 0.0, math.nan, 10_000, None)
    assert "is shown to hold by about 450 users" in too_little(never, guardrail, "user")
    always = replace(never, mean=1.0)
    assert "does not vary" in too_little(always, guardrail, "user")


def test_the_sequence_is_that_of_the_analysis() -> None:
    """Tuned to what is declared; a plan far from what is needed costs units, and says so."""
    own = planned().metrics[0].sequential.units
    far, near = (
        planned(experiment(replace(PLAN, planned_units=n))).metrics[0].sequential.units
        for n in (own * 100, own)
    )
    assert near == pytest.approx(own, rel=0.01)
    assert far > 1.5 * own


@given(st.floats(0.01, 0.3), st.floats(1.1, 3))
@settings(max_examples=15)
def test_a_larger_lift_needs_fewer_units(lift: float, factor: float) -> None:
    small, large = (
        forecast(experiment(), by_hand(), (), lift=size).metrics[0].sequential.units
        for size in (lift, lift * factor)
    )
    # Not quite by the square: what is sought makes values larger, and so their variance.
    assert small / factor**2 * 0.99 - 2 < large < small


def test_where_a_covariate_is_known_cuped_decides_what_is_found_and_planned_for() -> None:
    plain, less = (forecast(experiment(), by_hand(rho), (500.0,)) for rho in (None, 0.6))
    for without, with_it in zip(
        plain.metrics[0].detectable, less.metrics[0].detectable, strict=True
    ):
        assert with_it == pytest.approx(0.8 * without, rel=0.001)
    units = less.metrics[0].sequential_cuped
    assert units is not None
    (note,) = [n for n in less.notes if "planned_units" in n]
    assert units.units <= int(note.split("planned_units: ")[1].split("`")[0]) < 1.1 * units.units


# Days.


def test_days_are_those_in_which_the_units_come_and_the_last_outcome_ends() -> None:
    found = planned().metrics[0]
    observed = (1000 + 100) / 86_400
    assert found.sequential.days[0] == pytest.approx(
        found.sequential.units / 500 + observed, rel=0.001
    )


def test_what_is_found_in_the_days_that_an_effect_takes_is_that_effect() -> None:
    needed = planned().metrics[0].sequential.units
    arriving = needed / (14 - 1100 / 86_400)
    found = planned(arriving=(arriving,)).metrics[0]
    assert found.sequential.days[0] == pytest.approx(14, rel=0.001)
    assert found.detectable[1] == pytest.approx(0.05, rel=0.001)
    assert found.detectable[0] > found.detectable[1] > found.detectable[2]


def test_before_an_outcome_is_final_nothing_is_detectable() -> None:
    own = experiment(Plan(Goal(CLICKS, 0.05), observe_s=10 * 86_400))
    base = {("clicks", 864_000.0): by_hand()["clicks", 1000]}
    found = forecast(own, base, (500.0,)).metrics[0]
    assert math.isinf(found.detectable[0])
    assert math.isfinite(found.detectable[1])


def test_buckets_holdout_and_traffic_each_take_their_part_of_the_arrivals() -> None:
    own = experiment(buckets=(0, 5000))
    own = replace(own, arms=tuple(replace(arm, enrolled=4000) for arm in own.arms))
    found = forecast(own, by_hand(), (1000.0, 100.0), held_out=10.0)
    (traffic,) = found.traffics
    assert traffic.name == "40 %"
    assert traffic.per_day == pytest.approx((180.0, 18.0))


def test_without_arrivals_days_are_not_known_and_the_option_is_named() -> None:
    found = planned(arriving=())
    assert found.traffics == ()
    assert found.metrics[0].sequential.days == ()
    assert math.isnan(found.metrics[0].detectable[0])
    assert any("--units-per-day" in note for note in found.notes)


# Ramps.


def ramp(*percent: float, hold_days: float = 2, min_units: int = 0) -> Ramp:
    return Ramp(tuple(round(p * 100) for p in percent), hold_days * 86_400, min_units)


def test_a_ramp_is_forecast_at_every_step_and_along_it() -> None:
    found = planned(experiment(ramp=ramp(1, 10, 50)))
    assert [traffic.name for traffic in found.traffics] == ["1 %", "10 %", "50 %", "the ramp"]
    slow, middle, fast, along_it = found.metrics[0].sequential.days
    assert slow > middle > along_it > fast


def test_a_ramp_that_is_at_its_last_step_at_once_is_that_traffic() -> None:
    assert along(ramp(50), [10, 4], 0)[:2] == pytest.approx((5, 2))
    assert along(ramp(1, 10, 50, hold_days=0), [10, 4], 0)[:2] == pytest.approx((5, 2))


def test_a_step_waits_for_its_units_and_their_outcomes() -> None:
    """10 % of 100 a day are 10 new ones: 30 have come after three days, are final after four."""
    entering = along(ramp(10, 100, hold_days=1, min_units=30), [100], 1)
    assert entering[:3] == pytest.approx((10, 10, 10), abs=0.1)
    assert entering[3] == pytest.approx(10, abs=0.1)
    assert entering[4] == pytest.approx(100, abs=0.1)


def test_a_ramp_whose_units_never_come_stays_where_it_is() -> None:
    assert sum(along(ramp(10, 100, min_units=30), [100, 0], 1)) == pytest.approx(10)


steps = st.lists(st.integers(1, 10_000), min_size=1, max_size=5, unique=True).map(sorted)
coming = st.lists(st.integers(0, 1000), min_size=1, max_size=8)


@given(steps, coming, st.floats(0, 5), st.integers(0, 300))
def test_a_ramp_lets_in_no_more_than_its_last_step_and_no_less_than_its_first(
    buckets: list[int], arriving: list[int], hold_days: float, min_units: int
) -> None:
    falling = sorted(arriving, reverse=True)
    own = Ramp(tuple(buckets), hold_days * 86_400, min_units)
    entered = 0.0
    for day, new in enumerate(along(own, falling, 1.0), 1):
        entered += new
        assert new >= -1e-6
        assert entered <= buckets[-1] / 10_000 * come_by(falling, day) + 1e-6
        assert entered >= buckets[0] / 10_000 * come_by(falling, day) - 1e-6


@given(coming, st.floats(0.1, 30))
def test_days_until_units_have_come_are_the_inverse_of_units_by_days(
    arriving: list[int], days: float
) -> None:
    units = come_by(arriving, days)
    found = days_until(units, arriving)
    assert found <= days + 1e-6
    assert come_by(arriving, found) == pytest.approx(units, abs=1e-6)


@given(coming, st.lists(st.floats(0.1, 30), min_size=2, max_size=5).map(sorted))
def test_units_that_have_come_never_fall(arriving: list[int], days: list[float]) -> None:
    come = [come_by(arriving, day) for day in days]
    assert all(a <= b + 1e-9 for a, b in pairwise(come))


def test_stopped_arms_get_no_part_of_the_traffic() -> None:
    own = experiment(weights=(50, 25, 25))
    own = replace(own, arms=(*own.arms[:2], replace(own.arms[2], stopped=True)))
    assert traffics(own, [100.0], 0.0)[0].per_day == (75.0,)
    assert {m.arm for m in planned(own).metrics} == {"b"}


# From the log.


def log_of(
    own: Experiment, users: int = 300, days: int = 3, surface: str = "home"
) -> tuple[Settled, np.ndarray]:
    """Users of whom each comes once, spread over whole days from noon on, with 0 to 3 clicks."""
    fold = ProductionFold(own)
    clicks = np.random.default_rng(1).integers(0, 4, users)
    for i in range(users):
        at = T0 + DAY_MS // 2 + i * days * DAY_MS // users
        record = DecisionRecord(
            request_id=f"r{i}",
            user_id=f"u{i}",
            surface=surface,
            event_time_ms=at,
            assignments=[Assignment(experiment="other", arm=f"{i % 3}", unit="user")],
        )
        fold.on_decision(record)
        assert len(record.assignments) == 1  # it belongs to the reader
        assert record.assignments[0].experiment == "other"
        for n in range(int(clicks[i])):
            fold.on_feedback(
                FeedbackEvent(
                    event_id=f"{i}-{n}",
                    request_id=f"r{i}",
                    user_id=f"u{i}",
                    event_type=CLICK,
                    event_time_ms=at + 10,
                )
            )
    return fold.settled(), clicks


def test_a_baseline_is_the_mean_and_spread_of_all_users_whatever_arms_they_were_in() -> None:
    settled, clicks = log_of(experiment())
    found = baseline(settled, experiment(), CLICKS, 1000, LATER)
    assert found.units == 300
    assert found.mean == pytest.approx(clicks.mean())
    assert found.sd == pytest.approx(clicks.std(ddof=1))


def test_only_final_outcomes_make_a_baseline() -> None:
    settled, _ = log_of(experiment())
    noon = T0 + DAY_MS // 2
    after_a_day = baseline(settled, experiment(), CLICKS, 1000, noon + DAY_MS)
    assert after_a_day.units is not None
    assert 95 < after_a_day.units < 100


def test_arrivals_are_of_whole_days() -> None:
    """From noon to noon three days later: two whole days."""
    settled, _ = log_of(experiment())
    assert arrivals(settled, experiment()) == (100, 100)
    short, _ = log_of(experiment(), days=1)
    assert arrivals(short, experiment()) == ()


def test_a_returning_user_is_no_arrival() -> None:
    fold = ProductionFold(experiment())
    for day in range(4):
        fold.on_decision(
            DecisionRecord(request_id=f"{day}", user_id="u", event_time_ms=T0 + day * DAY_MS)
        )
    assert arrivals(fold.settled(), experiment()) == (1, 0, 0)


def test_only_surfaces_that_the_experiment_asks_for_count() -> None:
    at_home = Condition("", "in", ("home",))
    by_hour = Condition("hour", "at_least", (18.0,))
    own = experiment(where=(at_home, by_hour))
    assert len(log_of(own)[0].decisions) == 300
    assert len(log_of(own, surface="detail")[0].decisions) == 0
    assert len(log_of(own, surface="")[0].decisions) == 0
    (note,) = [n for n in planned(own).notes if "context.hour" in n]
    assert "surface" not in note


def test_a_forecast_of_the_log_is_that_of_the_same_numbers_by_hand() -> None:
    own = experiment(Plan(Goal(CLICKS, 0.05), observe_s=1000))
    settled, clicks = log_of(own)
    found, notes = from_log(settled, own, wanted(own), {}, LATER)
    assert notes == []
    same = planning.given(
        wanted(own), {"clicks": float(clicks.mean())}, {"clicks": float(clicks.std(ddof=1))}, {}
    )
    one, other = (forecast(own, base, (500.0,)).metrics[0] for base in (found, same))
    assert one.measured_of == 300
    assert abs(one.sequential.units - other.sequential.units) <= 1


def test_a_given_correlation_stands_for_the_logs() -> None:
    own = experiment(Plan(Goal(CLICKS, 0.05), observe_s=1000))
    found, _ = from_log(log_of(own)[0], own, wanted(own), {"clicks": 0.4}, LATER)
    assert found["clicks", 1000].correlation == 0.4


# Refusals.


def test_too_few_outcomes_of_the_primary_metric_are_refused_with_what_is_there() -> None:
    own = experiment(Plan(Goal(CLICKS, 0.05), observe_s=1000))
    settled, _ = log_of(own, users=99)
    with pytest.raises(CannotPlan, match=r"^clicks: 99 users of the log .* a forecast takes 100"):
        from_log(settled, own, wanted(own), {}, LATER)


def test_other_metrics_without_a_baseline_are_left_out_with_the_reason() -> None:
    settled, _ = log_of(experiment())
    found, notes = from_log(settled, experiment(), wanted(experiment()), {}, LATER)
    assert [name for name, _ in found] == ["clicks"]
    assert any("liked" in note and "does not vary" in note for note in notes)
    assert {m.metric for m in forecast(experiment(), found, (), notes=notes).metrics} == {"clicks"}


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (experiment(interleave="team_draft"), "interleaves"),
        (experiment(Plan()), "declares no metric"),
        (experiment(weights=(100,)), "no second arm"),
        (experiment(weights=(0, 100)), "no second arm"),
    ],
)
def test_what_compares_nothing_cannot_be_planned(own: Experiment, reason: str) -> None:
    with pytest.raises(CannotPlan, match=reason):
        wanted(own)


@pytest.mark.parametrize(
    ("mean", "sd", "reason"),
    [
        ({"clicks": 2.0}, {}, "a mean and no sd"),
        ({}, {"clicks": 2.0}, "an sd and no mean"),
        ({"clicks": 0.0}, {"clicks": 1.0}, "of 0 there is no share"),
        ({"clicks": 2.0}, {"clicks": 0.0}, "does not vary"),
    ],
)
def test_numbers_by_hand_must_be_complete(
    mean: dict[str, float], sd: dict[str, float], reason: str
) -> None:
    with pytest.raises(CannotPlan, match=reason):
        planning.given(wanted(experiment()), mean, sd, {})


def test_a_share_has_the_spread_of_a_share() -> None:
    found = planning.given(wanted(experiment()), {"liked": 0.2}, {}, {})
    assert found["liked", 1000].sd == pytest.approx(0.4)


# Said and shown.


def test_the_units_that_sequences_should_be_tuned_to_are_said() -> None:
    (note,) = [n for n in planned().notes if "planned_units" in n]
    units = planned().metrics[0].sequential.units
    said = int(note.split("planned_units: ")[1].split("`")[0])
    assert units <= said <= 1.1 * units
    fitting = experiment(replace(PLAN, planned_units=said))
    assert not [n for n in planned(fitting).notes if "planned_units" in n]
    far = experiment(replace(PLAN, planned_units=10 * said))
    assert any("far from" in n for n in planned(far).notes)


def test_json_has_null_for_what_is_not_known() -> None:
    text = json.dumps(planned(arriving=()).to_json(), allow_nan=False)
    assert json.loads(text)["metrics"][0]["detectable"] == [None, None, None]


@pytest.mark.parametrize("width", [80, 120])
def test_tables_show_every_number_whole(width: int) -> None:
    own = experiment(ramp=ramp(1, 5, 10, 25, 50))
    found = forecast(own, by_hand(0.5), (500.0, 300.0))
    console = Console(width=width)
    with console.capture() as captured:
        show(found, {m.name: m for m in own.plan.metrics}, console)
    text = captured.get()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for m in found.metrics:
        assert f"{m.sequential.units:,}" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


FILE = """\
version: 1
metrics: [{name: clicks, kind: mean, of: click, better: higher}]
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        arms:
          - {name: control, weight: 50}
          - {name: mixed, weight: 50, parameters: {rerank.diversity: 0.5}}
        primary: {metric: clicks, minimal_effect: 0.05}
"""


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["plan", *(str(a) for a in args)])


def test_the_command_takes_numbers_by_hand_without_any_log(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(FILE)
    by_name = run("mix", file, "--mean", "clicks=2", "--sd", "clicks=3", "--units-per-day", "500")
    assert by_name.exit_code == 0, by_name.output
    assert "Units needed" in by_name.output
    short = run("mix", file, "--mean", "2", "--sd", "3", "--units-per-day", "500", "--json")
    (found,) = json.loads(short.output)["metrics"]
    assert found["sequential"]["units"] == planned().metrics[0].sequential.units


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--mean", "likes=2"], 2, "METRIC=NUMBER"),
        (["--mean", "2"], 1, "mix: clicks has a mean and no sd"),
        (["--mean", "2", "--sd", "3", "--units-per-day", "9", "--lift", "0"], 1, "an effect of 0"),
        (["--units-per-day", "-1"], 2, "units-per-day"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(FILE)
    result = run("mix", file, *options)
    assert result.exit_code == code
    assert said in " ".join(result.output.split())
