"""The forecast before an experiment: its numbers, where they come from, and when it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner, Result

from services.experiments.cli.experiments import app
from services.experiments.declare.config import Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Plan
from services.experiments.plan import planning
from services.experiments.plan.baseline import Baseline
from services.experiments.plan.planning import (
    CannotPlan,
    forecast,
    too_little,
    wanted,
)
from services.experiments.plan.terminal import show
from tests.unit.experiments.plan.plans import (
    CLICKS,
    DEGRADED,
    LIKED,
    PLAN,
    by_hand,
    experiment,
    planned,
    ramp,
)

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
    never = Baseline(metric=DEGRADED, mean=0.0, sd=math.nan, units=10_000)
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


# Refusals.


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
