"""Reports of metrics of values, and what they say of how these are made."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
from rich.console import Console

from services.experiments.declare.metrics import Goal, Guardrail, Having, Metric, Plan
from services.experiments.measure.measure import measured
from services.experiments.report.build import build_report
from services.experiments.report.findings import Coverage, Report
from services.experiments.report.html.page import page
from services.experiments.report.terminal import show
from tests.unit.experiments.measure.measuring import ARMS, EXPERIMENT, LATER
from tests.unit.experiments.measure.shopping import SHOP, revenue, shoppers
from tests.unit.experiments.messages import decision, event, folded


def shown(report: Report) -> tuple[str, str]:
    """The words in the terminal, and those of the page."""
    console = Console(file=io.StringIO(), width=200)
    show(report, console)
    assert isinstance(console.file, io.StringIO)
    drawn = re.sub("<[^>]*>", " ", page(report))
    return " ".join(console.file.getvalue().split()), " ".join(drawn.split())


def test_a_report_speaks_of_the_domains_values_and_of_nothing_else() -> None:
    rng = np.random.default_rng(5)
    spends, arms = rng.lognormal(3, 1, 600), rng.integers(0, 2, 600)
    experiment = revenue(0.9)
    messages = shoppers(spends, arms, dict(enumerate(spends)))
    result = measured(folded(messages).settled(), experiment, LATER)
    report = build_report("l", experiment, result, LATER, Coverage())
    said, drawn = shown(report)
    cap = result.caps[1000]["revenue"]
    for text in (said, drawn):
        assert f"In revenue no user counts more than {cap:.4g} EUR, winsorised at 0.9" in text
        assert "Verdicts on revenue rest on the effect with less variance" in text
        assert not re.search(r"\b(clicks?|likes|impressions?|films?)\b", text)
    assert "Values: revenue in EUR." in said
    assert f"{report.goals[0].judged.control_value:.4g} EUR" in drawn
    json = report.to_json()
    assert json["goals"][0]["cap"] == cap
    assert "events" not in json["goals"][0]["metric"]


def test_a_report_says_every_cap_and_what_a_metric_is_narrowed_to() -> None:
    """A guardrail of a time of its own has a cap of its own, also where its metric is a goal."""
    goal = Metric("revenue", "mean", "buy.value", "higher", events=SHOP, winsorise=0.9)
    app = Having("channel", ("app", "[bold]web"))
    other = replace(goal, name="narrowed", where=(Having("coupon", (True,)), app))
    plan = Plan(
        Goal(goal, 0.05),
        guardrails=(Guardrail(goal, 0.1, observe_s=1), Guardrail(replace(goal, name="own"), 0.1)),
        observe_s=1000,
    )
    experiment = replace(EXPERIMENT, plan=plan, events=SHOP)
    arms = np.random.default_rng(3).integers(0, 2, 400)
    messages = shoppers([10.0] * 400, arms)
    for i, arm in enumerate(arms):  # after the guardrail's time and before the goal's is over
        messages.append(decision(f"again{i}", i + 500, f"u{i}", ARMS[arm].name))
        messages.append(event(f"again{i}", i + 500, 6, f"u{i}", value=30.0))
    result = measured(folded(messages).settled(), experiment, LATER)
    report = build_report("l", experiment, result, LATER, Coverage())
    (found,) = report.goals
    report = replace(report, goals=(found, replace(found, metric=other, cap=None)))
    for text in shown(report):
        for name, cap in (("revenue", 40), ("revenue over 1 s", 10), ("own", 40)):
            said = f"In {name} no user counts more than {cap} EUR, winsorised at 0.9"
            assert text.count(said) == 1
        assert "narrowed counts only buy with coupon: yes, channel: app or [bold]web." in text
