"""The answer of `what_if` as tables and sentences for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from services.common.terminal import plain
from services.experiments.what_if.answer import WhatIf, value_text
from services.experiments.what_if.off_policy.policy_value import Comparison, PolicyValue

LEGEND = """\
The target ranks the items of each logged ranking, as far down as it was explored, and no others.
Intervals are 95 % at a fixed horizon, over users: for one look, not for a decision. They do not
hold the bias of clipping. What users would do differently because of earlier lists is not known to
a log. If the answer is worth it, start an A/B test."""


def show(answer: WhatIf, title: str, console: Console) -> None:
    """Print the answer."""
    console.print(f"[bold]{plain(title)}[/]", highlight=False)
    console.print(
        f"{answer.metric.name}: {value_text(answer.metric)}; {answer.requests:,} requests of "
        f"{answer.users:,} users",
        highlight=False,
        markup=False,
    )
    console.print(_values(answer))
    console.print(f"  • {plain(_sentence(answer))}", highlight=False)
    console.print(
        f"  • By {answer.estimator}, which assumes {answer.assumes}.", highlight=False, markup=False
    )
    if answer.passed_over:
        console.print(f"  • Not by {plain(answer.passed_over)}", highlight=False)
    console.print(_left_out(answer))
    feedback = answer.feedback
    console.print(
        f"Feedback on these requests: {feedback.counted:,} events count, "
        f"{feedback.outside_window:,} were outside of the window of {answer.metric.window_s:g} s, "
        f"{feedback.other_items:,} on items that were not in the list.",
        highlight=False,
    )
    if answer.undecodable:
        console.print(f"{answer.undecodable:,} records of the log could not be read.")
    console.print(f"\n{LEGEND}", style="dim", highlight=False)


def _values(answer: WhatIf) -> Table:
    table = Table(
        "", "value", "95 % interval", "effective users", "largest weight", "clipped", "clip bias <",
        box=box.SIMPLE,
    )  # fmt: skip
    table.add_row("as logged", *_cells(answer.logged), "", "", "", "")
    target = answer.target
    clipped = [f"{target.clipped_share:.2%}", f"{target.bias_bound:.4f}"]
    table.add_row(
        "target",
        *_cells(target),
        f"{target.effective_sample_size:,.0f}",
        f"{target.largest_weight:,.1f}",
        *(clipped if target.clipped_share else ["", ""]),
    )
    table.add_row("difference", *_cells(answer.difference, "+"), "", "", "", "")
    if answer.lift is not None:
        made = answer.lift
        interval = f"{made.low:+.1%} .. {made.high:+.1%}"
        table.add_row("lift", f"{made.value:+.1%}", interval, "", "", "", "")
    return table


def _cells(made: PolicyValue | Comparison, sign: str = "") -> list[str]:
    return [f"{made.value:{sign}.4f}", f"{made.low:{sign}.4f} .. {made.high:{sign}.4f}"]


def _sentence(answer: WhatIf) -> str:
    low, high = answer.difference.low, answer.difference.high
    bias = answer.difference.bias_bound
    if low - bias <= 0 <= high + bias:
        if low <= 0 <= high:
            return "The log does not tell the target from what was served."
        return (
            "The difference is no larger than what clipping may have done to it: take a larger "
            "--clip, or none."
        )
    more = "more" if low > 0 else "less"
    than = f"than what was served, by {abs(answer.difference.value):.4f}"
    return f"The target is estimated to earn {more} {answer.metric.name} {than}."


def _left_out(answer: WhatIf) -> Table:
    table = Table("requests of this time", "", box=box.SIMPLE)
    table.columns[1].justify = "right"
    table.add_row("used", f"{answer.requests:,}")
    if answer.left_out:
        table.add_row("left out:", "")
    for why, count in answer.left_out.items():
        table.add_row(why.value, f"{count:,}")
    return table
