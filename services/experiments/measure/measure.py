"""From the set of decisions and feedback to an experiment's statistics per arm and day.

THE WAY. `log_reader` fills a `fold`; `exposures` finds who was exposed when and in which arm, and
the feedback on it; `observations` what every unit did in its time; `results` is what adds up.

WHO COUNTS. A *unit* (user, session, or of a declared kind) is exposed by the first decision, by
event time, that carries an exposure to the experiment (`fold`), answered or not. It belongs to the
arm of that decision for good (intention to treat), to that day (UTC), to its segments, and what was
known of the user then is the covariate. If it meets another arm later (an arm was taken out), that
is counted and said. With a new salt an experiment begins afresh: what another salt has dealt is not
its own. Nor are units whose first exposure was to arms with other parameters (`exposures`). A unit
that met the experiment overridden before (its arm was stopped then, or the allow-list named it) is
left out and said: in the other arms its like were exposed when they came, and those who come back
are others than those who come for the first time.

WHAT COUNTS. The unit's decisions that carry the experiment, from the first on and for
`Plan.observe_s`; and the feedback on those that were answered, from SKEW_MS before a decision
(clocks disagree) to the metric's window after it. Feedback beyond every window of the experiment is
late: counted, not added.

WHEN IT COUNTS. A unit enters the statistics once its outcome is final: `observe_s` and the longest
window after its first exposure. Until then a mean over units would be over outcomes that still
grow, for which no confidence sequence holds (`statistics.sequential`). What arrives for a final
unit after that (the log was behind) still corrects it: the statistics depend on the set of messages
and on `as_of_ms` only. A guardrail may observe for a time of its own (`Guardrail.observe_s`). Its
statistics are of the same units, observed for that time, and final when that and the window of such
a guardrail are over: harm that serving itself tells is known a minute after the first exposure.

EPOCHS. Where arms were stopped or resumed, cells are kept apart by the epoch in which units were
first exposed and the one in which their observation ended (`results.Measured.throughout`).

SPLITS. Where one arm's own traffic was edited on the way, cells are kept apart by the split that
was in force when their units were first exposed, as the records say (`splits`), and two kinds of
units are in no comparison. Those in whose observation the split changed: an arm that shrinks loses
their later requests, the others do not (`ArmDay.cut`). And those of which there is a record of
whatever kind from before the split of their first exposure came into force: an arm that grows gets
the users whom it had kept waiting, and the others' were exposed when they came (`Measured.backlog`;
left out of everything). Of declared kinds of units, only records in which some experiment assigned
by the kind tell that a unit came. Records that carry no experiment are forgotten with the log's
retention (`Fold.forget`): a unit that stays away for so long is new again.

COVARIATES. A metric of an event, of its values or of requests has a last column for CUPED where the
feature store keeps a number of users for it (`Metric.covariate`): log(1 + n) of the number n at the
first exposure. Such numbers are skewed over a lifetime, and in logarithms a few heavy users do not
decide alone. A unit without a profile has 0.

WINSORISING. A metric with `winsorise: q` counts no unit's value beyond a cap: the q-quantile of the
values that are not 0 (nothing can be cut of a 0, and most users buy nothing), of the first
CAP_UNITS final units that have one. It is of all arms together, so that it is the same number in
each: a cap of each arm's own would cut more where the tail is heavier, which may be the effect. And
it stands still. Outcomes become final in the order of first exposures, so that once CAP_UNITS are,
units that come later do not change it, and the metric is one whose definition was there before
them: the confidence sequences are those of any other metric, whatever the cap happens to be. A cap
that followed the data for ever would be of another metric at every look. Until that many units have
a value it does move; but it treats arms alike, so that without an effect none appears: its error
moves an effect by itself times the difference between the arms' shares of capped units, a product
of two small numbers. What is estimated is the effect on capped values; the report says the cap.

Statistics of different units add up: days, epochs and splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from services.experiments.changes.state import Epoch
from services.experiments.declare.config import Experiment
from services.experiments.declare.metrics import Metric, serving_observe_s
from services.experiments.measure.exposures import Exposed, JoinedFeedback, arm_counts
from services.experiments.measure.fold import Settled
from services.experiments.measure.observations import Observed, Span
from services.experiments.measure.results import Measured


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def window_s_of(experiment: Experiment) -> float:
    """The longest attribution window; interleaved lists have one without any metric."""
    plan = experiment.plan
    return plan.preference_window_s if experiment.interleave else plan.window_s


def spans_of(experiment: Experiment) -> list[Span]:
    """What is to be measured: first the plan's own span, then those of guardrails with another, and
    of arms' answers in their units' first minute (`losses`)."""
    plan = experiment.plan
    by_ms: dict[int, dict[str, Metric]] = {
        milliseconds(plan.observe_s): {goal.metric.name: goal.metric for goal in plan.goals}
    }
    for guardrail in plan.guardrails:
        own = by_ms.setdefault(milliseconds(guardrail.seconds(plan)), {})
        own[guardrail.metric.name] = guardrail.metric
    if not experiment.interleave:
        by_ms.setdefault(milliseconds(serving_observe_s(plan)), {})
    first, *others = (
        Span(
            observe_ms,
            milliseconds(max((m.window_s for m in used.values() if m.of_feedback), default=0.0)),
            tuple(used.values()),
        )
        for observe_ms, used in by_ms.items()
    )
    return [first._replace(window_ms=milliseconds(window_s_of(experiment))), *others]


def measured(
    settled: Settled, experiment: Experiment, as_of_ms: float, epochs: Sequence[Epoch] = ()
) -> Measured:
    """The statistics of an experiment as they are at the instant `as_of_ms`.

    Decisions outside of the experiment's start and stop are not its own, later ones than `as_of_ms`
    are not known yet. Arms that the log knows and the file does not are measured, too. `epochs`: of
    the experiment, ascending; without any all arms were live all the time.
    """
    exposed = Exposed.of(settled, experiment, as_of_ms)
    nothing = Measured(
        {},
        overridden=exposed.overridden,
        backlog=exposed.backlog,
        edited=exposed.edited,
        elsewhere_ms=exposed.elsewhere_ms,
    )
    if not len(exposed.rows):
        return nothing
    feedback = JoinedFeedback.on(exposed)
    known = tuple(epochs)
    if not known or known[0].start_ms > -math.inf:
        known = (Epoch(-math.inf), *known)
    first, *others = spans_of(experiment)
    primary = experiment.plan.primary
    goals = Observed(exposed, feedback, first, as_of_ms, known)
    cells = goals.cells(primary.metric if primary else None)
    late, caps = goals.late if first.window_ms else 0, {first.observe_ms: goals.caps}
    outside = len(exposed.rows) - len(goals.counted)
    del goals  # its columns are as large as the rest
    watched = {}
    for span in sorted(others, key=lambda span: span.observe_ms):
        watching = Observed(exposed, feedback, span, as_of_ms, known)
        watched[span.observe_ms] = watching.cells()
        caps[span.observe_ms] = watching.caps
        del watching
    return replace(
        nothing,
        cells=cells,
        decisions=len(exposed.rows),
        crossed=exposed.crossed,
        late=late,
        outside=outside,
        first_ms=float(exposed.time_ms.min()),
        last_ms=float(exposed.time_ms.max()),
        watched=watched,
        epochs=known,
        splits=exposed.since_ms,
        mixed=exposed.mixed,
        arms=arm_counts(exposed, feedback),
        caps={observe_ms: found for observe_ms, found in caps.items() if found},
    )
