"""Reports of made-up experiments as they happen in life, built by the real `report`.

Statistics are drawn with a fixed seed. `python -m tests.unit.experiments.sample_reports FOLDER`
writes their pages, to be looked at in a browser.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.experiments.analysis.effects import Interval
from services.experiments.analysis.moments import moments_of
from services.experiments.analysis.quantiles import GroupedHistogram
from services.experiments.config import Arm, Experiment
from services.experiments.measure import ArmDay, Cell, Measured, Statistic
from services.experiments.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.report import (
    ChangeReport,
    Coverage,
    DayValue,
    Effect,
    Preference,
    RampReport,
    Report,
    SegmentEffect,
    report,
)
from services.experiments.report_html import page

CLICK_RATE = Metric("click_rate", "ratio", "click", "higher", per="impression")
LIKED = Metric("liked", "binary", "like", "higher")
CLICKS = Metric("clicks", "mean", "click", "higher")
LATENCY = Metric("latency_p99", "quantile", "latency", "lower", quantile=0.99)
DEGRADED = Metric("degraded_share", "ratio", "degraded", "lower", per="request")
PLAN = Plan(
    Goal(CLICK_RATE, 0.02),
    (Goal(LIKED, 0.02), Goal(CLICKS, 0.02)),
    (Guardrail(LATENCY, 0.2), Guardrail(DEGRADED, 0.01, absolute=True)),
    planned_units=40_000,
)
START = 20_600  # a day
START_MS = START * 86_400_000.0
NEVER = Interval(-float("inf"), float("inf"))


def arms(names: Mapping[str, int], enrolled: int = 10_000) -> tuple[Arm, ...]:
    made, first = [], 0
    for name, weight in names.items():
        model = "masknet" if name == "control" else "mc_mlcc"
        made.append(
            Arm(name, first * 100, (first + weight) * 100, enrolled, {"ranking.model": model})
        )
        first += weight
    return tuple(made)


def experiment(
    name: str, names: Mapping[str, int], plan: Plan = PLAN, **more: object
) -> Experiment:
    return Experiment(
        name,
        name,
        "user",
        (0, 10_000),
        arms(names),
        {},
        True,
        plan=plan,
        **more,  # type: ignore[arg-type]
    )


def cell(
    rng: np.random.Generator, units: int, click: float, like: float, slow: float, degraded: float
) -> Cell:
    """One arm's units of one day, `slow` times as slow and degraded with this chance a request."""
    requests = rng.poisson(3, units) + 1
    impressions = requests * 10.0
    taste = rng.gamma(6, 1 / 6, units)
    clicks = rng.binomial(impressions.astype(int), np.clip(click * taste, 0, 1)).astype(float)
    likes = (rng.random(units) < 1 - (1 - like) ** requests).astype(float)
    bad = rng.binomial(requests, degraded).astype(float)
    unit_of = np.repeat(np.arange(units), requests)
    latencies = rng.gamma(4, 6 * slow, len(unit_of))
    hashes = rng.integers(0, 2**63, units, dtype=np.uint64)

    def of(chosen: NDArray[np.bool_]) -> dict[str, Statistic]:
        rows = chosen[unit_of]
        return {
            "click_rate": moments_of(clicks[chosen], impressions[chosen]),
            "liked": moments_of(likes[chosen]),
            "clicks": moments_of(clicks[chosen]),
            "latency_p99": GroupedHistogram.of(latencies[rows], hashes[unit_of[rows]]),
            "degraded_share": moments_of(bad[chosen], requests[chosen].astype(float)),
        }

    fine = bad == 0
    everybody = np.ones(units, bool)
    joined = int(units * 0.93)
    return Cell(units, units, joined, int(fine.sum()), of(everybody), of(fine), served=units)


def measured(
    seed: int, days: int, daily: Mapping[str, int], **effects: Mapping[str, float]
) -> Measured:
    """`effects`: per arm factors on the base rates of clicks, likes, latency and degraded."""
    rng = np.random.default_rng(seed)
    cells = {}
    for day in range(days):
        for name, units in daily.items():
            factor = {"click": 1.0, "like": 1.0, "slow": 1.0, "degraded": 0.02, "wear": 1.0}
            factor |= effects.get(name, {})
            click = 0.08 * (1 + (factor["click"] - 1) * factor["wear"] ** day)
            cells[ArmDay(name, START + day)] = cell(
                rng, units - 7 * day, click, 0.09 * factor["like"], factor["slow"],
                factor["degraded"],
            )  # fmt: skip
    units = sum(c.exposed for c in cells.values())
    end_ms = START_MS + days * 86_400_000 - 1
    watched = {60_000: cells}  # as long as guardrails on serving observe a unit
    return Measured(cells, 4 * units, 3, 41, 0, START_MS, end_ms, watched)


def errors(found: Report) -> Report:
    """With the standard errors that days have, as far as values tell them."""
    days = [replace(d, standard_error=_day_error(d)) for d in found.days]
    return replace(found, days=tuple(days))


def _day_error(day: DayValue) -> float:
    spread = {"click_rate": 0.06, "liked": 0.45, "clicks": 2.6, "latency_p99": 90.0}
    return spread.get(day.metric, 0.09) / day.units**0.5


def narrower(effect: Effect, correlation: float) -> Effect:
    factor = (1 - correlation**2) ** 0.5

    def shrunk(interval: Interval, value: float) -> Interval:
        return Interval(
            value + (float(interval.low) - value) * factor,
            value + (float(interval.high) - value) * factor,
        )

    return replace(
        effect,
        fixed=shrunk(effect.fixed, effect.effect),
        sequence=shrunk(effect.sequence, effect.effect),
        fixed_lift=shrunk(effect.fixed_lift, effect.lift),
        sequence_lift=shrunk(effect.sequence_lift, effect.lift),
    )


def with_cuped(found: Report, correlation: float = 0.55) -> Report:
    goals = [
        replace(g, cuped=narrower(g.all_units, correlation), covariate_correlation=correlation)
        if g.metric.of == "click"
        else g
        for g in found.goals
    ]
    return replace(found, goals=tuple(goals))


def with_segments(found: Report, lifts: Mapping[str, tuple[float, float]]) -> Report:
    """`lifts`: lift of the primary by segment, and how much wider its intervals are."""
    segments = []
    for goal in (g for g in found.goals if g.role == "primary"):
        for name, (lift, wider) in lifts.items():
            whole = goal.all_units
            shift = lift - whole.lift

            def moved(
                i: Interval, shift: float = shift, wider: float = wider, at: float = lift
            ) -> Interval:
                return Interval(
                    at + (float(i.low) + shift - at) * wider,
                    at + (float(i.high) + shift - at) * wider,
                )

            effect = replace(
                whole,
                units=int(whole.units / wider**2),
                value=whole.control_value * (1 + lift),
                lift=lift,
                fixed_lift=moved(whole.fixed_lift),
                sequence_lift=moved(whole.sequence_lift),
            )
            segments.append(SegmentEffect(name, goal.arm, effect))
    return replace(found, segments=tuple(segments))


def winner() -> Report:
    """Guardrails hold, the ramp is at its third step, novelty wears off a little."""
    own = experiment("ranking_model", {"control": 50, "treatment": 50})
    stats = measured(
        1, 14, {"control": 1500, "treatment": 1500},
        treatment={"click": 1.09, "like": 1.04, "slow": 1.04, "wear": 0.97, "degraded": 0.021},
    )  # fmt: skip
    found = report(
        "models", own, stats, START_MS + 16 * 86_400_000, Coverage(source="log://events")
    )
    found = with_segments(
        with_cuped(errors(found)),
        {"new_users": (0.031, 2.2), "evening": (0.082, 1.6), "mobile": (0.075, 1.3)},
    )
    day = 86_400_000
    return replace(
        found,
        ramp=RampReport(
            (1, 5, 10, 25, 50),
            3,
            START_MS + 9 * day,
            "The step holds until 2026-06-06 09:00 UTC; 3,120 of 5,000 units have a final outcome.",
        ),
        changes=tuple(
            ChangeReport(
                START_MS + after * day,
                "worker",
                "RAMP_ADVANCED",
                "",
                f"Held for 48 h with {units:,} units; no guardrail is breached.",
            )
            for after, units in ((2, 1_012), (5, 5_101), (9, 9_870))
        ),
    )


def undecided() -> Report:
    """Three arms, a few days in."""
    own = experiment(
        "diversity_of_the_home_feed", {"control": 40, "diversity_low": 30, "diversity_high": 30}
    )
    stats = measured(
        2, 3, {"control": 400, "diversity_low": 300, "diversity_high": 300},
        diversity_low={"click": 1.01}, diversity_high={"click": 0.985, "like": 1.03},
    )  # fmt: skip
    return errors(report("value", own, stats, START_MS + 5 * 86_400_000, Coverage(12)))


def breached() -> Report:
    """A slow arm that loses units, stopped by the worker."""
    own = experiment("ranking_model_v2", {"control": 50, "treatment": 50})
    stats = measured(
        3, 4, {"control": 1500, "treatment": 1340},
        treatment={"click": 0.97, "slow": 1.6, "degraded": 0.09},
    )  # fmt: skip
    found = report("models", own, stats, START_MS + 6 * 86_400_000, Coverage(120, 3))
    return replace(
        errors(found),
        changes=(
            ChangeReport(
                START_MS + 3.2 * 86_400_000,
                "worker",
                "ARM_STOPPED",
                "treatment",
                "latency_p99: BREACHED by treatment. It is worse by +58 % (between +44 % and "
                "+73 %); 20 % is allowed.",
            ),
            ChangeReport(
                START_MS + 3.3 * 86_400_000, "dana", "ARM_RESUMED", "treatment", "False alarm?"
            ),
            ChangeReport(
                START_MS + 3.31 * 86_400_000, "worker", "ARM_STOPPED", "treatment",
                "latency_p99: BREACHED by treatment.",
            ),
        ),
    )  # fmt: skip


def interleaved() -> Report:
    own = experiment("ranker_duel", {"masknet": 50, "mc_mlcc": 50}, Plan())
    own = replace(own, interleave="team_draft")
    stats = Measured({}, 8_412, 0, 0, 0, START_MS, START_MS + 2 * 86_400_000)
    found = report("duels", own, stats, START_MS + 4 * 86_400_000, Coverage(source="log://events"))
    return replace(
        found,
        sample_ratio=None,
        warnings=(),
        preference=Preference(
            "team_draft", "masknet", "mc_mlcc", 2140, 8011, 0.113,
            Interval(0.079, 0.147), Interval(0.058, 0.168), 0.00002, "b is better",
            "mc_mlcc is preferred to masknet: the preference is between +0.058 and +0.168 on a "
            "scale from -1 to 1.",
        ),
    )  # fmt: skip


def empty() -> Report:
    own = experiment("cold_start", {"control": 50, "treatment": 50})
    return report("models", own, Measured({}), START_MS, Coverage(source="log://events"))


HOSTILE = '<script>alert("1")</script> & \'"><img src=x onerror=alert(2)> {{ 7*7 }} ]]> -->'


def hostile() -> Report:
    """Every name is an attack, and long."""
    base = with_segments(with_cuped(undecided()), {HOSTILE: (0.03, 2.0)})
    evil = replace(CLICK_RATE, name=HOSTILE)
    names = {arm.arm: f"{arm.arm}{HOSTILE}" for arm in base.arms}
    return replace(
        base,
        experiment=HOSTILE,
        layer=HOSTILE,
        unit=HOSTILE,
        state=HOSTILE,
        control=names["control"],
        arms=tuple(replace(a, arm=names[a.arm]) for a in base.arms),
        goals=tuple(
            replace(g, metric=evil, arm=names[g.arm], sentence=HOSTILE) for g in base.goals
        ),
        guardrails=tuple(
            replace(g, metric=evil, arm=names[g.arm], sentence=HOSTILE) for g in base.guardrails
        ),
        days=tuple(replace(d, arm=names[d.arm], metric=HOSTILE, day=HOSTILE) for d in base.days),
        segments=tuple(replace(s, arm=names[s.arm]) for s in base.segments),
        warnings=(HOSTILE,),
        coverage=Coverage(source=HOSTILE),
        preference=Preference(
            HOSTILE, HOSTILE, HOSTILE, 1, 1, 0.0, NEVER, NEVER, 1.0, "undecided", HOSTILE
        ),
        changes=(ChangeReport(START_MS, HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
        ramp=RampReport((1, 50), 0, 0, HOSTILE),
    )


ALL = {
    "winner": winner,
    "undecided": undecided,
    "breached": breached,
    "interleaved": interleaved,
    "empty": empty,
    "hostile": hostile,
}


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in ALL.items():
        (folder / f"{name}.html").write_text(page(build()), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
