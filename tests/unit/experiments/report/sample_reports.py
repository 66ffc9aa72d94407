"""Reports of made-up experiments as they happen in life, built by the real `build_report`.

Statistics are drawn with a fixed seed. `python -m tests.unit.experiments.report.sample_reports
FOLDER` writes their pages, to be looked at in a browser.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.experiments.changes.state import Epoch
from services.experiments.declare.config import INTERLEAVED, Arm, Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.measure.results import (
    DAY_MS,
    ArmDay,
    Cell,
    Measured,
    SegmentPart,
    Statistic,
)
from services.experiments.report.build import build_report
from services.experiments.report.findings import (
    ChangeReport,
    Coverage,
    Preference,
    RampReport,
    Report,
)
from services.experiments.report.html.page import page
from services.experiments.statistics.effects import Interval
from services.experiments.statistics.moments import moments_of
from services.experiments.statistics.quantiles import GroupedHistogram

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
START_MS = float(START * DAY_MS)
NEVER = Interval(-math.inf, math.inf)


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
    past = np.log1p(rng.poisson(12 * taste))  # the user's clicks before
    new, evening = rng.random(units) < 0.2, rng.random(units) < 0.4
    clicks = rng.binomial(impressions.astype(int), np.clip(click * taste, 0, 1)).astype(float)
    likes = (rng.random(units) < 1 - (1 - like) ** requests).astype(float)
    bad = rng.binomial(requests, degraded).astype(float)
    unit_of = np.repeat(np.arange(units), requests)
    latencies = rng.gamma(4, 6 * slow, len(unit_of))
    hashes = rng.integers(0, 2**63, units, dtype=np.uint64)

    def of(chosen: NDArray[np.bool_]) -> dict[str, Statistic]:
        rows = chosen[unit_of]
        return {
            "click_rate": moments_of(clicks[chosen], impressions[chosen], past[chosen]),
            "liked": moments_of(likes[chosen], past[chosen]),
            "clicks": moments_of(clicks[chosen], past[chosen]),
            "latency_p99": GroupedHistogram.of(latencies[rows], hashes[unit_of[rows]]),
            "degraded_share": moments_of(bad[chosen], requests[chosen].astype(float)),
        }

    def part(chosen: NDArray[np.bool_]) -> SegmentPart:
        return SegmentPart(int(chosen.sum()), of(chosen)["click_rate"])

    fine = bad == 0
    everybody = np.ones(units, bool)
    joined = int(units * 0.93)
    segments = {"evening": part(evening), "new_users": part(new)}
    return Cell(
        exposed=units, final=units, joined=joined, undegraded=int(fine.sum()), served=units,
        statistics=of(everybody), undegraded_statistics=of(fine), segments=segments,
    )  # fmt: skip


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
    return Measured(
        cells,
        decisions=4 * units,
        crossed=3,
        late=41,
        first_ms=START_MS,
        last_ms=START_MS + days * DAY_MS - 1,
        watched={60_000: cells},  # how long guardrails of serving observe
        epochs=(Epoch(-math.inf),),
    )


def changed(at_ms: float, actor: str, kind: str, arm: str, reason: str) -> ChangeReport:
    return ChangeReport(at_ms=at_ms, actor=actor, kind=kind, arm=arm, reason=reason)


def winner() -> Report:
    """Guardrails hold, the ramp is at its fourth step, novelty wears off a little."""
    own = experiment("ranking_model", {"control": 50, "treatment": 50})
    stats = measured(
        1, 14, {"control": 1500, "treatment": 1500},
        treatment={"click": 1.09, "like": 1.04, "slow": 1.04, "wear": 0.97, "degraded": 0.021},
    )  # fmt: skip
    return build_report(
        "models",
        own,
        stats,
        START_MS + 16 * DAY_MS,
        Coverage(source="log://events"),
        ramp=RampReport(
            (1, 5, 10, 25, 50),
            3,
            START_MS + 9 * DAY_MS,
            "The step holds until 2026-06-06 09:00 UTC; 3,120 of 5,000 units have a final outcome.",
        ),
        changes=[
            changed(
                START_MS + after * DAY_MS,
                "worker",
                "RAMP_ADVANCED",
                "",
                f"Held for 48 h with {units:,} units; no guardrail is breached.",
            )
            for after, units in ((2, 1_012), (5, 5_101), (9, 9_870))
        ],
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
    return build_report("value", own, stats, START_MS + 5 * DAY_MS, Coverage(12))


def breached() -> Report:
    """A slow arm that loses units, stopped by the worker, resumed by a person and stopped again."""
    own = experiment("ranking_model_v2", {"control": 50, "treatment": 50})
    stats = measured(
        3, 4, {"control": 1500, "treatment": 1340},
        treatment={"click": 0.97, "slow": 1.6, "degraded": 0.09},
    )  # fmt: skip
    harm = "latency_p99: BREACHED by treatment. It is worse by +58 %; 20 % is allowed."
    return build_report(
        "models",
        own,
        stats,
        START_MS + 6 * DAY_MS,
        Coverage(120, 3),
        changes=[
            changed(START_MS + 3.2 * DAY_MS, "worker", "ARM_STOPPED", "treatment", harm),
            changed(START_MS + 3.3 * DAY_MS, "dana", "ARM_RESUMED", "treatment", "False alarm?"),
            changed(START_MS + 3.31 * DAY_MS, "worker", "ARM_STOPPED", "treatment", harm),
        ],
    )


def interleaved() -> Report:
    arms = tuple(
        Arm(name, 0, 0, 10_000, {"ranking.model": name}) for name in ("masknet", "mc_mlcc")
    )
    own = replace(experiment("ranker_duel", {}, Plan()), arms=arms, interleave="team_draft")
    rng = np.random.default_rng(5)
    cells = {}
    for day in range(3):
        preferences = np.clip(rng.normal(0.11, 0.7, 700), -1, 1)
        cells[ArmDay(INTERLEAVED, START + day)] = Cell(
            exposed=700,
            final=700,
            joined=640,
            undegraded=690,
            served=700,
            preference=moments_of(preferences),
            lists=2670,
        )
    stats = Measured(
        cells,
        decisions=8_412,
        first_ms=START_MS,
        last_ms=START_MS + 3 * DAY_MS,
        epochs=(Epoch(-math.inf),),
    )
    return build_report("duels", own, stats, START_MS + 5 * DAY_MS, Coverage(source="log://events"))


def empty() -> Report:
    own = experiment("cold_start", {"control": 50, "treatment": 50})
    return build_report("models", own, Measured({}), START_MS, Coverage(source="log://events"))


HOSTILE = '<script>alert("1")</script> & \'"><img src=x onerror=alert(2)> {{ 7*7 }} ]]> -->'


def hostile() -> Report:
    """Every name is an attack, and long."""
    base = undecided()
    assert base.sample_ratio is not None
    evil = replace(CLICK_RATE, name=HOSTILE)
    names = {arm.arm: f"{arm.arm}{HOSTILE}" for arm in base.arms}
    return replace(
        base,
        experiment=HOSTILE,
        layer=HOSTILE,
        unit=HOSTILE,
        state=HOSTILE,
        sample_ratio=replace(base.sample_ratio, arms=tuple(names.values())),
        control=names["control"],
        arms=tuple(replace(a, arm=names[a.arm], parameters={HOSTILE: HOSTILE}) for a in base.arms),
        goals=tuple(
            replace(g, metric=evil, arm=names[g.arm], sentence=HOSTILE) for g in base.goals
        ),
        guardrails=tuple(
            replace(g, metric=evil, arm=names[g.arm], sentence=HOSTILE) for g in base.guardrails
        ),
        days=tuple(replace(d, arm=names[d.arm], metric=HOSTILE, day=HOSTILE) for d in base.days),
        segments=tuple(replace(s, segment=HOSTILE, arm=names[s.arm]) for s in base.segments),
        warnings=(HOSTILE,),
        coverage=Coverage(source=HOSTILE),
        preference=Preference(
            method=HOSTILE,
            arm_a=HOSTILE,
            arm_b=HOSTILE,
            units=1,
            requests=1,
            value=0.0,
            fixed=NEVER,
            sequence=NEVER,
            p=1.0,
            verdict="undecided",
            sentence=HOSTILE,
            parameters_a={HOSTILE: HOSTILE},
            parameters_b={HOSTILE: HOSTILE},
        ),
        changes=(changed(START_MS, HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
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
