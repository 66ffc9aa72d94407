"""An experiment's report as one HTML page that needs nothing else.

No network, no script, no font of its own: styles and plots are in the page, which is fit to be
sent, printed and kept. It follows the reader's dark or light preference and any width from a
phone's on. Names come from files and may hold anything: the template and all SVG escape them.

Equal reports give equal bytes. The page judges nothing itself; what it says of verdicts is what
the report says.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cache, partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from services.experiments.report.findings import Report
from services.experiments.report.html import forests, plots
from services.experiments.report.html.answer import answer, stopped_arms
from services.experiments.report.html.forests import Badge, badge_of, duration, typeset
from services.experiments.report.rows import arm_rows
from services.experiments.report.sentences import fixed_note, notes_on_metrics
from services.experiments.report.wording import (
    instant,
    interval_text,
    metric_value,
    or_unknown,
    p_value,
    share,
    signed,
)
from services.experiments.statistics.harm import PLANNED_UNITS

NORMAL_95 = 1.96  # half a 95 % interval in standard errors: error bars of single days
CHANGES = {
    "ARM_STOPPED": "stopped",
    "ARM_RESUMED": "resumed",
    "RAMP_ADVANCED": "ramp advanced",
}


def page(report: Report) -> str:
    """The whole page."""
    return _template().render(
        report=report,
        answer=answer(report),
        style=Markup(_file("page.css")),  # ours, not a name: nothing to escape
        arms=_arms(report),
        primary=forests.goals(report, "primary"),
        primary_metric=next((g.metric for g in report.goals if g.role == "primary"), None),
        fixed_note=fixed_note(report),
        guardrail_units=PLANNED_UNITS,
        secondary=forests.goals(report, "secondary"),
        guardrails=forests.guardrails(report),
        preference=_preference(report),
        segments=forests.segments(report),
        days=_days(report),
        changes=[
            (instant(c.at_ms), CHANGES.get(c.kind, c.kind.replace("_", " ").lower()), c)
            for c in sorted(report.changes, key=lambda c: c.at_ms)
        ],
        exposed=sum(arm.exposed for arm in report.arms),
        final=sum(arm.final for arm in report.arms),
        metric_notes=notes_on_metrics(report),
        cut=sum(arm.cut for arm in report.arms),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("services.experiments.report", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "typeset": typeset,
        "instant": instant,
        "p": partial(or_unknown, show=p_value),
        "duration": duration,
        "pct": _percent,
        "place": "{:.3f}%".format,
        "px": lambda y: y if isinstance(y, str) else f"{y:.2f}",
    }
    environment.tests["finite"] = math.isfinite
    return environment.get_template("page.html.j2")


def _file(name: str) -> str:
    return files("services.experiments.report").joinpath("html", name).read_text("utf-8")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _arms(report: Report) -> list[dict[str, Any]]:
    """Each arm's units along the way, and its share beside the one that the weights want."""
    ratio = report.sample_ratio
    wanted = dict(zip(ratio.arms, ratio.expected, strict=True)) if ratio else {}
    seen = dict(zip(ratio.arms, ratio.observed, strict=True)) if ratio else {}
    total = sum(seen.values())
    stopped = stopped_arms(report)
    found = []
    for row in arm_rows(report):
        bar, own, due = None, "-", "-"
        if row.name in wanted:
            due = _percent(wanted[row.name])
        if row.name in wanted and total:
            own = share(seen[row.name], total)
            said = f"{own} of the units; the weights want {wanted[row.name]:.1%}"
            bar = seen[row.name] / total, wanted[row.name], typeset(said)
        found.append(
            asdict(row)
            | {
                "control": row.name == report.control,
                "stopped": row.name in stopped,
                "share": own,
                "wanted": due,
                "bar": bar,
            }
        )
    return found


def _preference(report: Report) -> dict[str, Any] | None:
    p = report.preference
    if p is None:
        return None
    badge = badge_of(p.verdict)
    winner = {"a is better": p.arm_a, "b is better": p.arm_b}.get(p.verdict)
    word = f"{winner} is preferred" if winner else "undecided"
    interval = interval_text(p.sequence, signed)
    said = f"Preference {signed(p.value)}, always valid {interval}, on a scale from -1 to 1"
    return {
        "badge": Badge(word, badge.sign, badge.tone),
        "value": or_unknown(p.value, signed),
        "interval": interval,
        "said": said,
        "scale": plots.PREFERENCES,
    }


def _days(report: Report) -> list[dict[str, Any]]:
    """A small plot per metric of its values by day of first exposure."""
    numbers = {arm.arm: number for number, arm in enumerate(report.arms)}
    labels = sorted({d.day for d in report.days})
    place = {day: i for i, day in enumerate(labels)}
    metrics = {goal.metric.name: goal.metric for goal in report.goals}
    metrics |= {guardrail.metric.name: guardrail.metric for guardrail in report.guardrails}
    found = []
    for name, metric in metrics.items():
        series = []
        for arm, number in numbers.items():
            points = tuple(
                (place[d.day], d.value, NORMAL_95 * d.standard_error)
                for d in report.days
                if d.metric == name and d.arm == arm and math.isfinite(d.value)
            )
            if points:
                series.append(plots.Series(arm, number, points))
        if not series:
            continue
        show = partial(metric_value, metric)
        said = f"{name} by day of first exposure, {labels[0]} to {labels[-1]}: " + "; ".join(
            f"{s.arm} from {show(s.points[0][1])} to {show(s.points[-1][1])}" for s in series
        )
        found.append(
            {
                "metric": metric,
                "plot": plots.Days(typeset(said), [day[5:] for day in labels], series, show),
            }
        )
    return found
