"""The live table fits a terminal of 80 columns, whatever the numbers, and says what it must."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console, RenderableType

from load_tests.demo import table
from load_tests.demo.checks import Check
from load_tests.demo.metrics import Histogram
from load_tests.demo.table import View, interval_of, milliseconds
from load_tests.demo.visitors import Tally
from services.experiments.act.snapshot import Fresh
from services.experiments.act.standing import Standing
from services.experiments.changes.state import LiveState, Pause
from services.experiments.declare.served import ArmModels
from services.experiments.measure.results import ArmCounts, Measured
from services.experiments.report.findings import Coverage, RampReport

EDGES = (0.0005, 0.01, 0.1, math.inf)
ELLIPSIS = "…"


def rendered(part: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


MODELS = tuple(
    ArmModels("models", "retrieval_model", arm, {"retrieval.model": model, "ranking.model": "fm"})
    for arm, model in (("control", "ssl_two_tower"), ("treatment", "comirec_sa"))
)


AB = "control", "treatment"


def fresh(*arms: str, state: LiveState | None = None, ramp: RampReport | None = None) -> Fresh:
    """What the worker says of an experiment with six-digit counts in these arms."""
    events = {"impression": 424_242, "click": 123_456, "like": 98_765}
    counts = ArmCounts(units=3_000, requests=61_728, events=events)
    measured = Measured({}, arms=dict.fromkeys(arms, counts))
    return Fresh(Standing(measured, state or LiveState(), (), ramp), Coverage(), 0.0)


def busy_view() -> View:
    """Six-digit counts everywhere, degradations and a restarted process."""
    tally = Tally(visits=5_999, events=987_654, degraded=123, latencies_s=[0.0123, 1.2345])
    tally.answers["OK"] = 123_456
    tally.degradations.update({"UNRANKED": 120, "POPULAR_FALLBACK": 3})
    return View(
        tally,
        visitors=6_000,
        models=MODELS,
        per_second=123.4,
        stages=dict.fromkeys(table.STAGES, Histogram(EDGES, (0, 5, 10, 10))),
        worker_lag_events=12_345,
        experiments={
            "like_weight": fresh(*AB),
            "retrieval_model": fresh(*AB),
            "diversity_preference": fresh("interleaved"),
        },
        applied=987_653,
        updater_lag_events=54_321,
        feedback_delay=Histogram(EDGES, (0, 1, 9, 10)),
        restarts=2,
    )


@pytest.mark.parametrize("width", [80, 100, 140])
def test_nothing_is_cut_off(width: int) -> None:
    text = rendered(table.table(busy_view()), width)
    assert ELLIPSIS not in text
    assert max(map(len, text.splitlines())) == width
    for said in ("123 requests/s", "unranked 120", "424,242", "29.1% [29.0, 29.2]", "987,653"):
        assert said in text
    for stage in table.STAGES:
        assert stage in text
    assert "experiment retrieval_model: control ssl_two_tower, treatment comirec_sa" in text


def test_what_the_worker_did_stands_beside_the_experiment() -> None:
    view = busy_view()
    ramp = RampReport((10.0, 25.0, 50.0, 100.0), 1, 0.0, "")
    stopped = LiveState({"treatment": (Pause(0.0, math.inf),)})
    view.experiments["like_weight"] = fresh(*AB, ramp=ramp)
    view.experiments["retrieval_model"] = fresh(*AB, state=stopped)
    shown = rendered(table.table(view), 120)
    assert "like_weight (ramp 25 %): control 3,000 29.1%" in shown
    assert "comirec_sa (stopped: treatment)" in shown
    assert "diversity_preference: both in one list, 3,000 visitors" in shown


def test_models_in_which_the_arms_agree_are_not_told() -> None:
    assert "fm" not in table.differing(MODELS, "retrieval_model")
    assert table.differing(MODELS[:1], "retrieval_model") == ""
    assert table.differing(MODELS, "another") == ""


def test_the_table_fits_a_small_terminal() -> None:
    assert len(rendered(table.table(busy_view(), height=24), 80).splitlines()) <= 25


def test_the_table_can_be_shown_before_anything_has_happened() -> None:
    text = rendered(table.table(View(Tally(), visitors=10)), 80)
    assert "0 of 10 visits" in text
    assert "no exposures yet" in text


def test_a_plain_line_has_no_control_characters() -> None:
    text = table.line(busy_view())
    assert text.isprintable()
    assert "5,999/6,000 visits" in text


@pytest.mark.parametrize("width", [80, 140])
def test_the_summary_marks_each_check(width: int) -> None:
    results = [Check("good", True, "1"), Check("bad", False, "2"), Check("fyi", None, "3")]
    text = rendered(table.summary(results), width)
    assert [line.split()[:2] for line in text.splitlines() if line[:1] in "✓✗•"] == [
        ["✓", "good"],
        ["✗", "bad"],
        ["•", "fyi"],
    ]


def test_a_rate_has_its_interval_and_is_left_out_while_it_makes_no_sense() -> None:
    def of(clicks: int, seen: int) -> str:
        return interval_of(ArmCounts(events={"click": clicks, "impression": seen}))

    assert of(0, 0) == "-"
    assert of(5, 3) == "-"  # clicks that were read before their impressions
    assert of(20, 1_000) == "2.00% [1.30, 3.07]"


def test_within_the_first_bucket_only_the_bound_is_told() -> None:
    assert milliseconds(Histogram(EDGES, (9, 9, 9, 9)), 0.5) == "<0.5 ms"
    assert milliseconds(Histogram(EDGES, (0, 10, 10, 10)), 0.5) == "5.2 ms"
    assert milliseconds(None, 0.5) == "-"
