"""What a report says in sentences."""

from __future__ import annotations

import math

from services.experiments.declare.metrics import VALUE, Goal
from services.experiments.report.findings import (
    GuardrailReport,
    Preference,
    Report,
    Verdict,
)
from services.experiments.report.wording import (
    allowed,
    between,
    is_known,
    metric_value,
    percent,
    signed,
)
from services.experiments.statistics.arms import Effect


def goal_sentence(
    goal: Goal, arm: str, control: str, effect: Effect, verdict: Verdict, needed: int | None
) -> str:
    """What is known of a goal metric."""
    name = goal.metric.name
    if not is_known(effect.sequence):
        return (
            f"{name}: nothing can be said of {arm} yet. There are {effect.units:,} units with a "
            "final outcome in both arms; it takes a hundred or two, and some that differ."
        )
    span = (
        f"{between(effect.sequence_lift, relative=True)} of {control}'s value"
        if is_known(effect.sequence_lift)
        else between(effect.sequence, relative=False)
    )
    if verdict in ("better", "worse"):
        return f"{name}: {arm} is {verdict} than {control}. The change is {span}."
    limit = f"{100 * goal.minimal_effect:g} %"
    if verdict == "no difference that matters":
        return f"{name}: {arm} changes it by less than {limit} either way ({span})."
    more = (
        f" A lift of {limit} would be found with about {needed:,} units; there are "
        f"{effect.units:,}."
        if needed
        else ""
    )
    return f"{name}: undecided for {arm}. The change may be anything {span}.{more}"


def guardrail_sentence(found: GuardrailReport, control: str) -> str:
    """What is known of a guardrail."""
    name, arm, effect = found.metric.name, found.arm, found.judged
    values = (
        f"{arm} has {metric_value(found.metric, effect.value)}, {control} "
        f"{metric_value(found.metric, effect.control_value)}"
    )
    limit = allowed(found)
    if found.undecidable:
        return (
            f"{name}: cannot be judged, for one arm's units have nothing that it could be measured "
            f"by ({values})."
        )
    if not is_known(effect.sequence):
        return f"{name}: nothing can be said of {arm} yet."
    span = between(found.harm_sequence, relative=not found.absolute)
    match found.safety:
        case "breached" if math.isfinite(found.harm):
            harm = signed(found.harm) if found.absolute else percent(found.harm)
            return (
                f"{name}: BREACHED by {arm}. It is worse by {harm} ({span}); {limit} is allowed. "
                "Stop the arm."
            )
        case "breached":
            return (
                f"{name}: BREACHED by {arm}. {values}; {limit} of that more is allowed. Stop the "
                "arm."
            )
        case "holds":
            return f"{name}: holds for {arm}. Any harm is below the allowed {limit} ({span})."
        case "undecided" if is_known(found.harm_sequence):
            return f"{name}: no breach seen for {arm}; the harm is {span}, {limit} is allowed."
        case "undecided":
            return (
                f"{name}: no breach seen for {arm} ({values}). Control's value is too close to 0 "
                f"to show that {limit} of it holds: declare allowed_absolute_harm for that."
            )


SMALL_SHARE = 0.2


def fixed_note(report: Report) -> str:
    """What the interval at the end does not hold for in this experiment; empty if it does."""
    weights = {arm.arm: arm.weight * arm.traffic for arm in report.arms}
    of_control = weights.get(report.control, 0.0)
    small = [
        name
        for name, weight in weights.items()
        if name != report.control
        and weight + of_control > 0
        and not SMALL_SHARE <= weight / (weight + of_control) <= 1 - SMALL_SHARE
    ]
    if not small or not report.goals:
        return ""
    return (
        f"{', '.join(small)} and {report.control} differ much in size: for rare events and skewed "
        'metrics "at the end" errs in 8 to 15 % of cases instead of 5 %, even if you look once.'
    )


def notes_on_metrics(report: Report) -> list[str]:
    """How values were made before they were compared: what CUPED took out, what was capped, and
    what events were counted."""
    adjusted = dict.fromkeys(goal.metric.name for goal in report.goals if goal.cuped)
    found = []
    if adjusted:
        found.append(
            f"Verdicts on {', '.join(adjusted)} rest on the effect with less variance by what was "
            "known of each user before (CUPED)."
        )
    caps = [(goal.metric, "", goal.cap) for goal in report.goals]
    for guardrail in report.guardrails:  # of a time of its own it has a cap of its own
        own = guardrail.observe_s != report.observe_s
        over = f" over {guardrail.observe_s:g} s" if own else ""
        caps.append((guardrail.metric, over, guardrail.cap))
    found += [
        f"In {metric.name}{over} no {report.unit} counts more than {metric_value(metric, cap)}, "
        f"winsorised at {metric.winsorise:g}: the same in all arms."
        for metric, over, cap in caps
        if cap is not None
    ]
    found += [
        f"{metric.name} counts only {metric.of.removesuffix(VALUE)} with "
        f"{', '.join(map(str, metric.where))}."
        for metric, _, _ in caps
        if metric.where
    ]
    return list(dict.fromkeys(found))  # every arm has them


def preference_sentence(found: Preference) -> str:
    """What is known of the preference between two rankings."""
    if not is_known(found.sequence):
        return (
            f"preference: nothing can be said yet. There are {found.units:,} units with a final "
            "outcome; it takes a hundred or two, and some that differ."
        )
    span = between(found.sequence, relative=False)
    match found.verdict:
        case "undecided":
            return (
                f"preference: undecided between {found.arm_a} (-1) and {found.arm_b} (+1). It may "
                f"be anything {span}."
            )
        case "a is better":
            better, worse = found.arm_a, found.arm_b
        case "b is better":
            better, worse = found.arm_b, found.arm_a
    return (
        f"preference: users prefer {better}'s ranking to {worse}'s. On a scale from -1 (always "
        f"{found.arm_a}) to +1 (always {found.arm_b}) it is {span}."
    )
