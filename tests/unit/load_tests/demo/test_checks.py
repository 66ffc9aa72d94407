"""The demo's checks: each fails when, and only when, its promise was broken."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from load_tests.demo.checks import (
    ARM_TOLERANCE,
    SOUND_UNITS,
    Check,
    Evidence,
    all_hold,
    arm_shares,
    arm_tolerance,
    checks,
    drafts,
    ramps,
    right_models,
)
from load_tests.demo.models import EXPERIMENTS
from load_tests.demo.visitors import ArmKey, Tally
from services.experiments.act.standing import Standing
from services.experiments.changes.state import LiveState, Pause
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsConfig
from services.experiments.measure.results import ArmCounts, Measured
from services.experiments.report.findings import RampReport
from tests.domains import FILMS

CONTROL = ArmKey("models", "ranking_model", "control")
TREATMENT = ArmKey("models", "ranking_model", "treatment")
SERVED = ("units", "requests", "degraded")
VERSIONS = {"ssl_two_tower": "v1", "masknet": "v2", "mc_mlcc": "v3"}


@pytest.fixture(scope="module")
def experiments() -> ExperimentsConfig:
    return config_reader.load(Path(__file__).parents[4] / "experiments.yaml", FILMS)


@pytest.fixture(scope="module")
def three() -> ExperimentsConfig:
    """The demo's: an A/B experiment, one with a ramp, and an interleaving one."""
    return config_reader.load(EXPERIMENTS, FILMS)


def with_tally(tally: Tally, **others: Any) -> Evidence:
    return Evidence(tally, 0, 0, 0, **others)


def counted(units: int, **events: int) -> Counter[str]:
    return Counter(units=units, requests=units, **events)


def exposed(control: int, treatment: int) -> Tally:
    tally = Tally()
    for key, n, ranking in ((CONTROL, control, "masknet"), (TREATMENT, treatment, "mc_mlcc")):
        tally.arms[key] = counted(n, impression=5 * n, click=n, like=n // 2)
        tally.versions[key, "candidate_generation", VERSIONS["ssl_two_tower"]] = n
        tally.versions[key, "ranking", VERSIONS[ranking]] = n
    tally.answers["OK"] = control + treatment
    tally.feedback_calls["OK"] = 1
    tally.events = 100
    tally.follow_ups = tally.visible_at_once = 3
    return tally


def good() -> Evidence:
    tally = exposed(300, 310)
    models = {version: model for model, version in VERSIONS.items()} | {"v4": "mc_mlcc"}
    measured = {"ranking_model": seen({key.arm: n for key, n in tally.arms.items()})}
    return Evidence(tally, 100, duplicate=0, invalid=0, versions=models, measured=measured)


def seen(
    arms: Mapping[str, Mapping[str, int]], stopped: tuple[str, ...] = (), step: int | None = None
) -> Standing:
    """What the worker knows of an experiment with these numbers of its arms."""
    pauses = {arm: (Pause(0.0, math.inf),) for arm in stopped}
    ramp = None if step is None else RampReport((10.0, 25.0, 50.0, 100.0), step, 0.0, "")
    counts = {}
    for arm, numbers in arms.items():
        events = dict(numbers)
        serving = [events.pop(what, 0) for what in SERVED]
        counts[arm] = ArmCounts(*serving, events)
    return Standing(Measured({}, arms=counts), LiveState(pauses, step or 0), (), ramp)


def off_by(what: str, by: int) -> Callable[[Evidence], Evidence]:
    """The worker counts so many more of something for the control."""

    def miscount(e: Evidence) -> Evidence:
        arms = {key.arm: Counter(n) for key, n in e.tally.arms.items()}
        arms["control"][what] += by
        return replace(e, measured={"ranking_model": seen(arms)})

    return miscount


def failed(results: list[Check]) -> list[str]:
    return [check.name for check in results if check.holds is False]


def test_all_checks_hold_for_an_undisturbed_run(experiments: ExperimentsConfig) -> None:
    results = checks(good(), experiments)
    assert failed(results) == []
    assert all_hold(results)


def lose_an_answer(e: Evidence) -> Evidence:
    e.tally.answers["DEADLINE_EXCEEDED"] = 1
    return e


def refuse_feedback(e: Evidence) -> Evidence:
    e.tally.feedback_calls["UNAVAILABLE"] = 1
    return e


def never_show(e: Evidence) -> Evidence:
    e.tally.never_visible = 1
    return e


def show_again(e: Evidence) -> Evidence:
    e.tally.shown_again = 1
    return e


def count_for_an_arm_that_nobody_saw(e: Evidence) -> Evidence:
    arms = {key.arm: n for key, n in e.tally.arms.items()}
    return replace(e, measured={"ranking_model": seen({**arms, "other": {"requests": 1}})})


def rank_with_the_other_model_once(e: Evidence) -> Evidence:
    e.tally.versions[TREATMENT, "ranking", VERSIONS["masknet"]] += 1
    return e


def never_rank_the_treatment(e: Evidence) -> Evidence:
    del e.tally.versions[TREATMENT, "ranking", VERSIONS["mc_mlcc"]]
    return e


def retrieve_with_an_unknown_version(e: Evidence) -> Evidence:
    e.tally.versions[CONTROL, "candidate_generation", "v0"] += 1
    return e


@pytest.mark.parametrize(
    ("breach", "broken"),
    [
        (rank_with_the_other_model_once, "each arm had its models"),
        (never_rank_the_treatment, "each arm had its models"),
        (retrieve_with_an_unknown_version, "each arm had its models"),
        (lose_an_answer, "every request was answered"),
        (refuse_feedback, "every request was answered"),
        (never_show, "feedback changes the next answers"),
        (show_again, "feedback changes the next answers"),
        *(
            (off_by(what, by), "experiment numbers are exact")
            for what in (*SERVED, "impression", "click", "like")
            for by in (-1, 1)
        ),
        (count_for_an_arm_that_nobody_saw, "experiment numbers are exact"),
        (lambda e: replace(e, measured={}), "experiment numbers are exact"),
        (lambda e: replace(e, applied=99), "no event was lost or applied twice"),
        (lambda e: replace(e, applied=101), "no event was lost or applied twice"),
        (lambda e: replace(e, duplicate=1), "no event was lost or applied twice"),
    ],
)
def test_a_broken_promise_fails_its_check_and_no_other(
    experiments: ExperimentsConfig, breach: Callable[[Evidence], Evidence], broken: str
) -> None:
    results = checks(breach(good()), experiments)
    assert failed(results) == [broken]
    assert not all_hold(results)


def test_calls_of_others_may_add_to_the_numbers_but_take_nothing_away(
    experiments: ExperimentsConfig,
) -> None:
    more = replace(off_by("click", 1)(good()), applied=101, others=2)
    assert failed(checks(more, experiments)) == []
    fewer = replace(off_by("requests", -1)(good()), applied=99, others=2)
    assert failed(checks(fewer, experiments)) == [
        "experiment numbers are exact",
        "no event was lost or applied twice",
    ]


def test_degraded_answers_are_told_and_fail_nothing(experiments: ExperimentsConfig) -> None:
    evidence = good()
    evidence.tally.degraded = 7
    evidence.tally.degradations["UNRANKED"] = 7
    results = checks(evidence, experiments)
    assert all_hold(results)
    assert "7 unranked" in next(c.figures for c in results if c.name == "degraded answers")


@pytest.mark.parametrize(("control", "holds"), [(3059, True), (2941, True), (3061, False)])
def test_arms_of_a_whole_run_must_be_within_one_percent(
    experiments: ExperimentsConfig, control: int, holds: bool
) -> None:
    tally = exposed(control, SOUND_UNITS - control)
    (check,) = arm_shares(with_tally(tally), experiments)
    assert check.holds is holds


def test_the_checks_say_which_model_each_arm_has(experiments: ExperimentsConfig) -> None:
    evidence = good()
    (shares,) = arm_shares(evidence, experiments)
    assert "control (masknet) 49.2%" in shares.figures
    assert "treatment (mc_mlcc) 50.8%" in shares.figures
    answered = right_models(evidence, experiments).figures
    assert answered == "610 by ssl_two_tower, 300 by masknet, 310 by mc_mlcc"
    breached = right_models(rank_with_the_other_model_once(evidence), experiments).figures
    assert breached == "treatment: 310 by mc_mlcc, 1 by masknet"


def test_a_version_that_was_published_meanwhile_is_the_arms_model_too(
    experiments: ExperimentsConfig,
) -> None:
    evidence = good()
    evidence.tally.versions[TREATMENT, "ranking", "v4"] = 5
    check = right_models(evidence, experiments)
    assert check.holds
    assert "315 by mc_mlcc" in check.figures


def test_without_any_answer_by_a_model_nothing_is_claimed(experiments: ExperimentsConfig) -> None:
    assert right_models(with_tally(Tally()), experiments).holds is False


def test_an_arm_that_nobody_saw_fails(experiments: ExperimentsConfig) -> None:
    (check,) = arm_shares(with_tally(exposed(500, 0)), experiments)
    assert check.holds is False


def test_where_an_arm_was_stopped_shares_are_told_and_fail_nothing(
    experiments: ExperimentsConfig,
) -> None:
    measured = {"ranking_model": seen({}, stopped=("treatment",))}
    (check,) = arm_shares(with_tally(exposed(500, 100), measured=measured), experiments)
    assert check.holds is None
    assert "stopped by a guardrail: treatment" in check.figures


def test_arms_of_a_ramp_are_dealt_by_chance(three: ExperimentsConfig) -> None:
    tally = exposed(3_000, 3_000)
    ramped = {arm: ArmKey("value", "like_weight", arm) for arm in ("control", "treatment")}
    for key, units in zip(ramped.values(), (3_105, 2_895), strict=True):
        tally.arms[key] = counted(units)
    fixed, by_chance = arm_shares(with_tally(tally), three)
    assert fixed.holds
    assert by_chance.holds
    tally.arms[ramped["control"]] = counted(3_400)
    assert arm_shares(with_tally(tally), three)[1].holds is False


@pytest.mark.parametrize(
    ("interleaved", "uneven", "holds"), [(9, 0, True), (9, 1, False), (0, 0, False)]
)
def test_drafted_lists_are_even(
    three: ExperimentsConfig, interleaved: int, uneven: int, holds: bool
) -> None:
    (check,) = drafts(Tally(interleaved=interleaved, uneven=uneven), three)
    assert check.holds is holds


def test_without_interleaving_nothing_is_said_of_drafts(experiments: ExperimentsConfig) -> None:
    assert drafts(Tally(), experiments) == []


@pytest.mark.parametrize(
    ("step", "seconds", "stopped", "holds"),
    [(1, 100, False, True), (0, 100, False, False), (0, 39, False, None), (0, 100, True, True)],
)
def test_a_ramp_grows_when_there_was_time_and_no_breach(
    three: ExperimentsConfig, step: int, seconds: float, stopped: bool, holds: bool | None
) -> None:
    measured = {"like_weight": seen({}, ("treatment",) if stopped else (), step)}
    evidence = with_tally(Tally(), seconds=seconds, measured=measured)
    (check,) = ramps(evidence, three)
    assert check.holds is holds
    assert "10 %, 25 %, 50 %, 100 %" in check.figures


def test_tolerance_never_falls_below_one_percent_nor_grows_with_units() -> None:
    tolerances = [arm_tolerance(0.5, n) for n in (1, 10, 100, 1_000, SOUND_UNITS, 10**6)]
    assert tolerances == sorted(tolerances, reverse=True)
    assert tolerances[-1] == ARM_TOLERANCE
