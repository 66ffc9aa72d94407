"""What the log says of production: metrics per unit and arrivals."""

from __future__ import annotations

import numpy as np
import pytest

from protos.tandem.v1.records_pb2 import CLICK, Assignment, DecisionRecord, FeedbackEvent
from services.experiments.declare.config import Experiment
from services.experiments.declare.metrics import Goal, Plan
from services.experiments.declare.targeting import Condition
from services.experiments.measure.fold import Settled
from services.experiments.measure.results import DAY_MS
from services.experiments.plan import planning
from services.experiments.plan.baseline import ProductionFold, arrivals, baseline
from services.experiments.plan.planning import (
    CannotPlan,
    forecast,
    from_log,
    wanted,
)
from tests.unit.experiments.plan.plans import (
    CLICKS,
    LATER,
    T0,
    experiment,
    planned,
)


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
