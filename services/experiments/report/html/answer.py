"""A report's answer in plain words: what was tested, what is known, what to do.

It only reads verdicts that are in the report; no number is judged here a second time. What matters
most comes first: doubt of the data outranks a breach, a breach outranks a win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.experiments.report.findings import GoalReport, GuardrailReport, Preference, Report
from services.experiments.report.wording import settings

Tone: TypeAlias = Literal["good", "bad", "even", "open"]

_BREACHED, _UNDECIDED = 1, 6  # urgencies


@dataclass(frozen=True)
class Answer:
    headline: str
    tone: Tone
    tested: tuple[str, ...]
    known: tuple[str, ...]
    todo: tuple[str, ...]


@dataclass(frozen=True)
class _Advice:
    """What to conclude, and how urgent it is among several arms (0 first)."""

    urgency: int
    headline: str
    tone: Tone
    todo: str


def answer(report: Report) -> Answer:
    """The answer that the page begins with."""
    advice = sorted(_advice(report), key=lambda a: a.urgency)
    return Answer(
        advice[0].headline,
        advice[0].tone,
        tuple(_tested(report)),
        tuple(_known(report)),
        tuple(dict.fromkeys(a.todo for a in advice)),
    )


def stopped_arms(report: Report) -> tuple[str, ...]:
    """The arms that the history of changes leaves stopped."""
    stopped: dict[str, None] = {}
    for change in sorted(report.changes, key=lambda c: c.at_ms):
        if change.kind == "ARM_STOPPED":
            stopped[change.arm] = None
        elif change.kind == "ARM_RESUMED":
            stopped.pop(change.arm, None)
    return tuple(stopped)


def treatments(report: Report) -> tuple[str, ...]:
    return tuple(arm.arm for arm in report.arms if arm.arm != report.control)


def _tested(report: Report) -> list[str]:
    found = []
    if report.preference:
        p = report.preference
        method = p.method.replace("_", " ")
        found.append(
            f"Which of two rankings is preferred: {p.arm_a} or {p.arm_b}? Every {report.unit} in "
            f"the experiment gets one list that takes items from both ({method} interleaving), "
            "and what is clicked is credited to the ranking that contributed it."
        )
        found += _changed([(p.arm_a, p.parameters_a), (p.arm_b, p.parameters_b)])
        return found
    others = treatments(report)
    weights = _listed([f"{a.arm} ({a.weight:g} %)" for a in report.arms])
    if others:
        found.append(
            f"Is {_listed(others, 'or')} better than {report.control}? Chance gives every "
            f"{report.unit} one arm, and it keeps it: {weights}."
        )
    found += _changed([(arm.arm, arm.parameters) for arm in report.arms])
    primary = next((g for g in report.goals if g.role == "primary"), None)
    if primary:
        direction = "more" if primary.metric.better == "higher" else "less"
        found.append(
            f"What decides is {primary.metric.name}; {direction} is better, and a change of "
            f"{100 * primary.minimal_effect:g} % is the smallest that matters."
        )
    if guarded := list(dict.fromkeys(g.metric.name for g in report.guardrails)):
        found.append(f"On the way {_listed(guarded)} must not get worse by more than is allowed.")
    if traffic := sorted({arm.traffic for arm in report.arms if arm.traffic < 100}):
        said = _listed([f"{percent:g} %" for percent in traffic])
        found.append(f"Only {said} of the {report.unit}s that could take part do so now.")
    return found


def _changed(arms: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """What each arm changes."""
    return [f"{arm}: {settings(parameters)}." for arm, parameters in arms]


def _known(report: Report) -> list[str]:
    if not report.decisions:
        return ["Nothing yet: no request in the log carries this experiment."]
    found = []
    if report.preference:
        found.append(report.preference.sentence)
    found += [g.sentence for g in report.goals if g.role == "primary"]
    found += [g.sentence for g in report.guardrails if g.safety == "breached"]
    quiet = [g for g in report.guardrails if g.safety != "breached"]
    holds = sum(g.safety == "holds" for g in quiet)
    if quiet and holds == len(report.guardrails):
        found.append("All guardrails are shown to hold.")
    elif quiet:
        found.append(
            f"Of {_count(len(report.guardrails), 'guardrail check')} {holds} "
            f"{'is' if holds == 1 else 'are'} shown to hold and {len(quiet) - holds} "
            f"{'is' if len(quiet) - holds == 1 else 'are'} not decided yet."
        )
    for arm in stopped_arms(report):
        found.append(f"{arm} is stopped: its {report.unit}s get what {report.control} gets.")
    return found


def _advice(report: Report) -> list[_Advice]:
    """At least one; several where arms differ."""
    if not report.decisions:
        return [_nothing_yet(report)]
    found = [_of_preference(report.preference)] if report.preference else _of_arms(report)
    if report.sample_ratio and report.sample_ratio.broken:
        doubt = _Advice(
            0,
            "The data cannot be trusted yet",
            "bad",
            "Find out first why the arms' sizes are not those of the weights. Until then no effect "
            "on this page means anything.",
        )
        # Whoever doubts the data may still stop an arm, and should not start to use one.
        return [doubt, *(a for a in found if a.urgency <= _BREACHED)]
    return found


def _of_arms(report: Report) -> list[_Advice]:
    found = []
    stopped = stopped_arms(report)
    for arm in treatments(report):
        goal = next((g for g in report.goals if g.role == "primary" and g.arm == arm), None)
        guards = [g for g in report.guardrails if g.arm == arm]
        found.append(_of_arm(report, arm, goal, guards, arm in stopped))
    if len(found) > 1 and all(a.urgency == _UNDECIDED for a in found):
        return [_undecided(report, "")]
    return found or [
        _Advice(9, "Nothing is compared", "open", "Declare a second arm that gets units.")
    ]


def _nothing_yet(report: Report) -> _Advice:
    todo = {
        "off": "It is switched off. Write `enabled: true` to start it.",
        "scheduled": "It has not begun. Come back after its start.",
        "ended": (
            "It has ended without a single decision in the log. Look whether its conditions were "
            "ever fulfilled, and how long the log is kept."
        ),
        "running": (
            "It is running, so look whether requests come in, whether its conditions can be "
            "fulfilled and whether its traffic is more than 0 %."
        ),
    }.get(report.state, "Look whether it is running and whether requests come in.")
    return _Advice(9, "Nothing to see yet", "open", todo)


def _of_preference(p: Preference) -> _Advice:
    match p.verdict:
        case "undecided":
            return _Advice(
                _UNDECIDED,
                f"Undecided between {p.arm_a} and {p.arm_b}",
                "open",
                "Keep it running: the intervals may be looked at as often as you like.",
            )
        case verdict:
            winner, loser = (p.arm_a, p.arm_b) if verdict == "a is better" else (p.arm_b, p.arm_a)
            return _Advice(
                4,
                f"{winner} is preferred to {loser}",
                "good",
                f"Go on with {winner}. Interleaving says which ranking is preferred, not by how "
                "much a product metric moves: confirm by an A/B experiment where that matters.",
            )


def _of_arm(
    report: Report,
    arm: str,
    goal: GoalReport | None,
    guards: Sequence[GuardrailReport],
    stopped: bool,
) -> _Advice:
    control = report.control
    breached = [g.metric.name for g in guards if g.safety == "breached"]
    breached += [f"{report.unit}s {hop.hop}" for hop in report.broken_hops if hop.arm == arm]
    if breached:
        harm = _listed(breached)
        if stopped:
            return _Advice(
                _BREACHED,
                f"{arm} harms {harm} and is stopped",
                "bad",
                f"{arm} is stopped already. Repair it and start it afresh under a new salt, or "
                "take it out.",
            )
        return _Advice(
            _BREACHED,
            f"{arm} harms {harm}: stop it",
            "bad",
            f"Stop {arm}: {harm} got worse by more than is allowed, whatever else it improves.",
        )
    if stopped:
        return _Advice(
            3,
            f"{arm} is stopped",
            "bad",
            f"Read in the history why {arm} was stopped, then resume it or take it out.",
        )
    if goal is None:
        return _Advice(
            8,
            "There is no metric that decides",
            "open",
            "Declare a primary metric with its minimal effect: without one nothing is decided.",
        )
    name = goal.metric.name
    if goal.implausible:
        return _Advice(
            2,
            f"{arm} looks too good or too bad to be true",
            "open",
            f"Look for a bug in {arm} before you believe its change of {name}: effects as large as "
            "this one are nearly always errors of logging or of the product.",
        )
    match goal.verdict:
        case "better":
            waiting = [g.metric.name for g in guards if g.safety == "undecided"]
            todo = f"Use {arm}: {name} is better, and no guardrail is harmed."
            if waiting:
                todo = (
                    f"{arm} may be used: {name} is better. {_listed(waiting)} "
                    f"{'is' if len(waiting) == 1 else 'are'} not shown to hold yet; wait if that "
                    "matters more than the time."
                )
            elif not guards:
                todo = f"Use {arm}: {name} is better. No guardrail was declared."
            if report.ramp and report.ramp.waits_for:
                todo += " Meanwhile the ramp goes on by itself."
            return _Advice(4, f"{arm} is better than {control}", "good", todo)
        case "worse":
            return _Advice(
                3,
                f"{arm} is worse than {control}",
                "bad",
                f"Keep {control} and take {arm} out.",
            )
        case "no difference that matters":
            return _Advice(
                5,
                f"{arm} makes no difference that matters",
                "even",
                f"Keep whichever of {arm} and {control} is simpler or cheaper: {name} differs by "
                "less than matters.",
            )
        case _:
            return _undecided(report, arm)


def _undecided(report: Report, arm: str) -> _Advice:
    """Of one arm, or of all of them together."""
    of = f" for {arm}" if arm and len(treatments(report)) > 1 else ""
    if report.state == "ended":
        return _Advice(
            _UNDECIDED,
            "It ended undecided",
            "open",
            f"Neither a change nor its absence can be claimed{of}. Let it run longer, or accept "
            "not to know.",
        )
    return _Advice(
        _UNDECIDED,
        "Undecided so far",
        "open",
        f"Keep it running: nothing is decided{of} yet, and no guardrail is breached.",
    )


def _listed(names: Sequence[str], last: str = "and") -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
