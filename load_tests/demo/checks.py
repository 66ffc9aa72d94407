"""What the demo promises, as pure checks of what its visitors saw against what the services say."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from load_tests.demo.visitors import ArmKey, Tally
from services.experiments.act.standing import Standing
from services.experiments.declare.config import ExperimentsConfig
from services.experiments.declare.served import SECTIONS, ArmModels, arm_models

ARM_TOLERANCE = 0.01
# An arm's share of n units scatters by sqrt(p (1 - p) / n). Who is in which arm is a pure function
# of the visitors' ids, though: with these visitors and experiments.yaml as shipped the shares are
# the same in every run (49.5 and 50.5 % of 6,000 visitors), so a share that is off by more than
# ARM_TOLERANCE means lost requests or a broken assignment, never chance. Fewer visitors are allowed
# three standard errors.
SOUND_UNITS = 6_000
RAMP_ROUNDS = 4  # hold times after which a ramp must have taken a step: users must be known first


@dataclass(frozen=True)
class Check:
    """One promise, whether it held, and the figures. `holds` None: for information."""

    name: str
    holds: bool | None
    figures: str


@dataclass(frozen=True)
class Evidence:
    """Both sides at the end of the traffic: the visitors' tally and the services' own numbers."""

    tally: Tally
    applied: float  # the updater's counters
    duplicate: float
    invalid: float
    others: int = 0  # calls that somebody else made meanwhile (`tandem recommend`)
    versions: Mapping[str, str] = field(default_factory=dict)  # published version -> model
    seconds: float = 0.0  # that the traffic lasted
    measured: Mapping[str, Standing] = field(default_factory=dict)  # by experiment: the worker's

    def stopped(self, experiment: str) -> list[str]:
        """The experiment's arms that the worker has stopped."""
        seen = self.measured.get(experiment)
        return sorted(seen.state.stopped) if seen else []


def checks(evidence: Evidence, experiments: ExperimentsConfig) -> list[Check]:
    """All checks, in the order of a request's way."""
    return [
        answered(evidence.tally),
        degraded(evidence.tally),
        visible(evidence.tally),
        *arm_shares(evidence, experiments),
        right_models(evidence, experiments),
        *drafts(evidence.tally, experiments),
        *ramps(evidence, experiments),
        worker_agrees(evidence, experiments),
        updater_agrees(evidence),
    ]


def answered(tally: Tally) -> Check:
    """Every Recommend and RecordFeedback call got an OK."""
    failures = {
        f"{call} {status}": n
        for call, counts in (("Recommend", tally.answers), ("RecordFeedback", tally.feedback_calls))
        for status, n in counts.items()
        if status != "OK"
    }
    figures = f"{tally.answers['OK']:,} of {tally.requests:,} requests"
    if failures:
        figures += "; " + ", ".join(f"{n} {name}" for name, n in failures.items())
    return Check("every request was answered", bool(tally.requests) and not failures, figures)


def degraded(tally: Tally) -> Check:
    """For information: on a machine that is busy with other work, stages may be late."""
    share = tally.degraded / max(tally.requests, 1)
    kinds = ", ".join(f"{n} {kind.lower()}" for kind, n in tally.degradations.items())
    figures = f"{tally.degraded:,} answers ({share:.2%})" + (f": {kinds}" if kinds else "")
    return Check("degraded answers", True if not tally.degraded else None, figures)


def visible(tally: Tally) -> Check:
    """Feedback reached the features, and what was chosen was not shown again."""
    holds = (
        bool(tally.follow_ups + len(tally.visible_delays_s))
        and not tally.never_visible
        and not tally.shown_again
    )
    figures = f"seen in {tally.visible_at_once:,} of {tally.follow_ups:,} next answers"
    if tally.visible_delays_s:
        median = sorted(tally.visible_delays_s)[len(tally.visible_delays_s) // 2]
        figures += (
            f"; {median * 1000:.0f} ms after its acknowledgement (median, when asked at once)"
        )
    if tally.never_visible:
        figures += f"; {tally.never_visible} never"
    if tally.shown_again:
        figures += f"; {tally.shown_again} chosen items shown again"
    return Check("feedback changes the next answers", holds, figures)


def arm_shares(evidence: Evidence, experiments: ExperimentsConfig) -> list[Check]:
    """Each A/B experiment's arms were exposed in the ratio of their weights.

    A ramp lets in whoever comes while it grows, so its arms may be off by chance; where a guardrail
    has stopped an arm the shares say nothing.
    """
    result = []
    models = arm_models(experiments)
    tally = evidence.tally
    for layer, experiment in experiments.experiments():
        if not experiment.enabled or experiment.interleave:
            continue
        weights = {arm.name: arm.weight * arm.traffic for arm in experiment.arms}
        units = {
            name: tally.arms[key]["units"] if key in tally.arms else 0
            for name in weights
            for key in [ArmKey(layer.name, experiment.name, name)]
        }
        mine = [arm for arm in models if arm[:2] == (layer.name, experiment.name)]
        model = {arm.arm: different_models(arm, mine) for arm in mine}
        total, whole = sum(units.values()), sum(weights.values())
        holds, figures = bool(total), []
        for name, weight in weights.items():
            share, wanted = units[name] / max(total, 1), weight / whole
            tolerance = arm_tolerance(wanted, total, by_chance=experiment.ramp is not None)
            holds = holds and abs(share - wanted) <= tolerance
            who = " ".join([name, *(f"({m})" for m in model[name])])
            figures.append(f"{who} {share:.1%} (weight {wanted:.0%} ± {tolerance:.1%})")
        text = f"{', '.join(figures)} of {total:,} visitors"
        if stopped := evidence.stopped(experiment.name):
            text += f"; stopped by a guardrail: {', '.join(stopped)}"
        name = f"arms of {experiment.name} as weighted"
        result.append(Check(name, None if stopped else holds, text))
    return result


def drafts(tally: Tally, experiments: ExperimentsConfig) -> list[Check]:
    """Both rankings of a team draft contributed the same number of items to every list, or one more
    or less."""
    return [
        Check(
            f"drafts of {experiment.name} are even",
            tally.interleaved > 0 and not tally.uneven,
            f"{tally.interleaved:,} lists from two rankings, {tally.uneven} uneven",
        )
        for _, experiment in experiments.experiments()
        if experiment.enabled and experiment.interleave == "team_draft"
    ]


def ramps(evidence: Evidence, experiments: ExperimentsConfig) -> list[Check]:
    """Ramps grew by themselves. For information where the traffic was over before they could."""
    result = []
    for _, experiment in experiments.experiments():
        if not (experiment.enabled and experiment.ramp):
            continue
        seen = evidence.measured.get(experiment.name)
        step = seen.ramp.step if seen and seen.ramp else 0
        steps = [f"{buckets / 100:g} %" for buckets in experiment.ramp.steps]
        grown = step > 0 or bool(evidence.stopped(experiment.name))
        long_enough = evidence.seconds > RAMP_ROUNDS * experiment.ramp.hold_s
        result.append(
            Check(
                f"ramp of {experiment.name} grew by itself",
                grown or (False if long_enough else None),
                f"{steps[0]} to {steps[step]} of {', '.join(steps)}",
            )
        )
    return result


def different_models(arm: ArmModels, arms: Sequence[ArmModels]) -> list[str]:
    """Those models of an arm that are not the same in all `arms` of its experiment."""
    return [
        model
        for parameter, model in arm.models.items()
        if any(other.models.get(parameter) != model for other in arms)
    ]


def right_models(evidence: Evidence, experiments: ExperimentsConfig) -> Check:
    """The answers of each arm were made by the models that the arm asks for, and by no other."""
    made: dict[tuple[ArmKey, str], Counter[str]] = defaultdict(Counter)
    for (key, service, version), n in evidence.tally.versions.items():
        made[key, service][evidence.versions.get(version, version)] += n
    answers: Counter[str] = Counter()
    wrong = []
    for arm in arm_models(experiments):
        key = ArmKey(arm.layer, arm.experiment, arm.arm)
        for parameter, model in arm.models.items():
            by = made[key, SECTIONS[parameter]]
            answers[model] += by[model]
            others = ", ".join(f"{n:,} by {other}" for other, n in by.items() if other != model)
            counts = evidence.tally.arms.get(key)
            if others or (counts and counts["requests"] > counts["degraded"] and not by[model]):
                wrong.append(f"{arm.arm}: {by[model]:,} by {model}, {others or 'none by others'}")
    told = "; ".join(wrong) or ", ".join(f"{n:,} by {model}" for model, n in answers.items())
    return Check("each arm had its models", answers.total() > 0 and not wrong, told)


def arm_tolerance(share: float, units: int, *, by_chance: bool = False) -> float:
    """How far an arm's share may be off; see SOUND_UNITS. `by_chance`: who comes is not fixed."""
    if units >= SOUND_UNITS and not by_chance:
        return ARM_TOLERANCE
    return max(ARM_TOLERANCE, 3 * math.sqrt(share * (1 - share) / max(units, 1)))


def worker_counts(
    measured: Mapping[str, Standing], experiments: ExperimentsConfig
) -> dict[ArmKey, Mapping[str, int]]:
    """The worker's numbers of every arm that it knows, as in `Tally.arms`."""
    return {
        ArmKey(layer.name, experiment.name, arm): {
            "units": counts.units,
            "requests": counts.requests,
            "degraded": counts.degraded,
            **counts.events,
        }
        for layer, experiment in experiments.experiments()
        if experiment.name in measured
        for arm, counts in measured[experiment.name].measured.arms.items()
    }


def unmeasured(measured: Mapping[str, Standing], experiments: ExperimentsConfig) -> list[str]:
    """The enabled experiments of which the worker has measured nothing."""
    return [
        experiment.name
        for _, experiment in experiments.experiments()
        if experiment.enabled and experiment.name not in measured
    ]


def worker_agrees(evidence: Evidence, experiments: ExperimentsConfig) -> Check:
    """The numbers that experiments are judged by are exactly what the visitors did."""
    name = "experiment numbers are exact"
    if missing := unmeasured(evidence.measured, experiments):
        return Check(name, False, f"the worker has measured nothing of {', '.join(missing)}")
    theirs = worker_counts(evidence.measured, experiments)
    ours = evidence.tally.arms
    wrong = []
    for key in sorted(ours.keys() | theirs.keys()):
        sent_of: Mapping[str, int] = ours.get(key, {})
        known_of = theirs.get(key, {})
        for what in sorted(sent_of.keys() | known_of.keys()):
            sent, known = sent_of.get(what, 0), known_of.get(what, 0)
            if sent > known or (sent < known and not evidence.others):
                arm = f"{key.experiment} {key.arm}"
                wrong.append(f"{arm} {what}: visitors {sent:,}, worker {known:,}")
    if wrong:
        return Check(name, False, "; ".join(wrong))
    total: Counter[str] = Counter()  # over arms: a visitor is in several experiments
    for counts in ours.values():
        total.update(counts)
    events = total.keys() - {"units", "requests", "degraded"}
    figures = (
        f"{total['units']:,} exposures of visitors, {total['requests']:,} exposing requests, "
        f"{' and '.join(f'{total[event]:,} of {event}' for event in sorted(events))} credited to "
        f"arms, by both counts{_others(evidence)}"
    )
    return Check(name, True, figures)


def updater_agrees(evidence: Evidence) -> Check:
    """Every acknowledged event changed the features once."""
    sent, applied = evidence.tally.events, evidence.applied
    exact = applied == sent or (applied > sent and evidence.others > 0)
    holds = bool(sent) and exact and not evidence.duplicate + evidence.invalid
    figures = f"{applied:,.0f} applied of {sent:,} acknowledged{_others(evidence)}"
    if evidence.duplicate or evidence.invalid:
        figures += f"; {evidence.duplicate:.0f} duplicate, {evidence.invalid:.0f} invalid"
    return Check("no event was lost or applied twice", holds, figures)


def _others(evidence: Evidence) -> str:
    return f" (and {evidence.others} calls of others)" if evidence.others else ""


def all_hold(results: Sequence[Check]) -> bool:
    return all(check.holds is not False for check in results)
