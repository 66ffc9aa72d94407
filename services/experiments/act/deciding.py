"""What the worker does about a running experiment: stop an arm, or take the ramp's next step.

Pure: from the declaration, the state and the report to changes. Everything rests on what may be
looked at any time: e-values of guardrails and of hops, the sequential test of the sample ratio.
Nothing here looks at a fixed-horizon interval or p-value, nor at goal metrics: an arm that wins is
not rolled out and one that loses is not ended, as long as it does no harm that was declared as such
and loses no units.

STOPPING. A treatment whose guardrail is breached is stopped, and so is one that plainly loses its
units on the way (`losses`); all treatments are when the sample ratio is broken, for then nothing
that arms are compared by can be trusted. Control never is. An interleaving experiment has neither
guardrails nor arms that could be of unequal size: only people stop it. Nothing is resumed here:
that takes a person who knows why.

RAMPS. The next step is taken when nothing is stopped, the gate holds, the step (or the last
resumption, if that is later) is `hold_s` old, and `min_units` units that were first exposed in it
have a final outcome. One step at a time. After the last one nothing happens. The gate `no_breach`
takes a guardrail that has too few units yet for one that holds (`min_units` says how many are
enough), but never one that cannot be judged although units are there (an arm without a single
latency, or nothing to divide by): blind is not well.

WHAT IS NOT GUARANTEED. A resumed arm is judged by new units only, but the report shows the evidence
of all.
"""

from __future__ import annotations

import json
import math
from typing import Any

from protos.tandem.v1.records_pb2 import ExperimentChange
from services.experiments.changes.actions import By, advance, stop_all
from services.experiments.changes.state import (
    LiveState,
    at_last_step,
    live_arms,
    ramp_step,
    stoppable,
)
from services.experiments.declare.config import Experiment
from services.experiments.report.findings import (
    BrokenHop,
    GuardrailReport,
    RampReport,
    Report,
    SampleRatio,
    jsonable,
)

ACTOR = "worker"


def decide(
    experiment: Experiment, state: LiveState, report: Report, now_ms: float, step_units: int
) -> list[ExperimentChange]:
    """The changes to make now, each upon the one before it; none unless the experiment runs.

    `experiment` is the file's declaration. `report` rests on units that count since the last
    resumption (`changes.state.judged_epochs`). `step_units`: how many units that were first exposed
    in the present step of the ramp have a final outcome.
    """
    if experiment.state(now_ms) != "running":
        return []
    if stops := _stops(experiment, state, report, now_ms):
        return stops
    if at_last_step(experiment, state) or waits_for(experiment, state, report, now_ms, step_units):
        return []
    return [_advance(experiment, state, report, now_ms, step_units)]


def ramp_report(
    experiment: Experiment, state: LiveState, report: Report, now_ms: float, step_units: int
) -> RampReport | None:
    """Where the ramp stands; None if the experiment has none."""
    if experiment.ramp is None:
        return None
    waits = waits_for(experiment, state, report, now_ms, step_units)
    if not (waits or at_last_step(experiment, state)):
        waits = "It waits for the worker, which takes the next step as soon as it looks."
    since_ms = _step_since(state, report)
    return RampReport(
        tuple(buckets / 100 for buckets in experiment.ramp.steps),
        ramp_step(experiment, state),
        since_ms if math.isfinite(since_ms) else 0.0,
        waits,
    )


def waits_for(
    experiment: Experiment, state: LiveState, report: Report, now_ms: float, step_units: int
) -> str:
    """What keeps the ramp from its next step; empty if nothing does, or there is none."""
    ramp = experiment.ramp
    if ramp is None or at_last_step(experiment, state):
        return ""
    if (doing := experiment.state(now_ms)) != "running":
        return f"It waits for the experiment to run (it is {doing})."
    if experiment.stopped:
        return "It waits for the experiment, which is stopped in its file."
    if stopped := sorted(state.stopped & set(stoppable(experiment))):
        return (
            f"It waits for {', '.join(stopped)}, which is stopped: resume it, or stop it in the "
            "experiments file to go on without it."
        )
    if obstacle := _gate(experiment, report):
        return f"It waits for {obstacle}"
    since_ms = max([_step_since(state, report), *state.resumed_ms.values()])
    if not math.isfinite(since_ms):
        return "It waits for the first request."
    if (left_s := ramp.hold_s - (now_ms - since_ms) / 1000) > 0:
        return (
            f"It waits for time: the step lasts at least {ramp.hold_s:g} s, "
            f"{math.ceil(left_s)} s to go."
        )
    if step_units < ramp.min_units:
        return (
            f"It waits for units: {step_units:,} that were first exposed in this step have a final "
            f"outcome, {ramp.min_units:,} are wanted."
        )
    return ""


def _stops(
    experiment: Experiment, state: LiveState, report: Report, now_ms: float
) -> list[ExperimentChange]:
    if experiment.interleave:
        return []
    causes = {arm: _cause_to_stop(arm, report, now_ms) for arm in live_arms(experiment, state)}
    found = {arm: by for arm, by in causes.items() if by}
    return stop_all(experiment, state, found) if found else []


def _cause_to_stop(arm: str, report: Report, now_ms: float) -> By | None:
    """A sentence and its numbers; None if there is no reason."""
    breached = [g for g in report.guardrails if g.arm == arm and g.safety == "breached"]
    ratio = report.sample_ratio if report.sample_ratio and report.sample_ratio.broken else None
    lost = [hop for hop in report.broken_hops if hop.arm == arm]
    if not (breached or ratio or lost):
        return None
    evidence: dict[str, Any] = {}
    if breached:
        evidence["guardrails"] = [_guardrail_evidence(g) for g in breached]
    if ratio:
        evidence["sample_ratio"] = _ratio_evidence(ratio)
    if lost:
        evidence["broken_hops"] = [_hop_evidence(hop) for hop in lost]
    reasons = [g.sentence for g in breached] + [hop.sentence for hop in lost]
    if ratio:
        reasons.append(
            "The arms' sizes are not those of the weights: "
            f"{', '.join(f'{n:,}' for n in ratio.observed)} units where the shares are "
            f"{', '.join(f'{100 * share:.3g} %' for share in ratio.expected)} "
            f"(always-valid p = {ratio.p:.2g})."
        )
    return By(ACTOR, " ".join(reasons), now_ms, json.dumps(jsonable(evidence)))


def _gate(experiment: Experiment, report: Report) -> str:
    """What of the gate does not hold; empty if all does."""
    assert experiment.ramp is not None
    if experiment.interleave:
        return ""
    if report.sample_ratio and report.sample_ratio.broken:
        return "a sample ratio that is as the weights say."
    stopped = {arm.name for arm in experiment.arms if arm.stopped}
    if lost := [hop for hop in report.broken_hops if hop.arm not in stopped]:
        said = ", ".join(f"{hop.arm} ({hop.hop})" for hop in lost)
        return f"arms that do not lose their units on the way: {said}."
    live = [g for g in report.guardrails if g.arm not in stopped]
    accepted = ("holds",) if experiment.ramp.gate == "holds" else ("holds", "undecided")
    wrong = [
        f"{g.metric.name} of {g.arm} ({'cannot be judged' if g.undecidable else g.safety})"
        for g in live
        if g.safety not in accepted or g.undecidable
    ]
    return f"guardrails: {', '.join(wrong)}." if wrong else ""


def _advance(
    experiment: Experiment, state: LiveState, report: Report, now_ms: float, step_units: int
) -> ExperimentChange:
    ramp, step = experiment.ramp, ramp_step(experiment, state)
    assert ramp is not None
    held_s = (now_ms - _step_since(state, report)) / 1000
    evidence = {
        "held_s": held_s,
        "units": step_units,
        "gate": ramp.gate,
        "guardrails": [_guardrail_evidence(g) for g in report.guardrails],
        "sample_ratio": _ratio_evidence(report.sample_ratio) if report.sample_ratio else None,
    }
    reason = (
        f"From {ramp.steps[step] / 100:g} % to {ramp.steps[step + 1] / 100:g} %: the step has "
        f"lasted {held_s:,.0f} s, {step_units:,} of its units have a final outcome, and its "
        f"gate ({ramp.gate}) holds."
    )
    return advance(experiment, state, By(ACTOR, reason, now_ms, json.dumps(jsonable(evidence))))


def _step_since(state: LiveState, report: Report) -> float:
    """When the step in force began: the first one with the first decision, infinite without."""
    return float(state.ramp_step_since_ms or report.first_ms)


def _guardrail_evidence(g: GuardrailReport) -> dict[str, Any]:
    return {
        "metric": g.metric.name,
        "arm": g.arm,
        "safety": g.safety,
        "harm": g.harm,
        "interval": [float(g.harm_sequence.low), float(g.harm_sequence.high)],
        "log_e": g.log_e,
        "allowed": g.allowed_harm,
        "absolute": g.absolute,
        "units": g.effect.units,
    }


def _hop_evidence(hop: BrokenHop) -> dict[str, Any]:
    names = "hop", "arm", "entered", "passed", "least", "log_e"
    return {name: getattr(hop, name) for name in names}


def _ratio_evidence(ratio: SampleRatio) -> dict[str, Any]:
    return {
        "expected": list(ratio.expected),
        "observed": list(ratio.observed),
        "p": ratio.p,
        "hops": [hop.target for hop in ratio.hops if hop.broken],
    }
