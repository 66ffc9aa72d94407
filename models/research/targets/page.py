"""What the models were to reach, beside what the saved results say: a page.

    python -m models.research.targets.page [--results run/bench/models] [--docs run/bench/docs]

Every figure is computed from the result files (`models/training/results.py`), from the models built
now, or timed now (`models/research/targets/costs.py`). The targets, and what is known of those
that are not reached, stand in `targets.yaml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.figures import RESULTS as FIGURES
from models.research.targets import costs
from models.research.targets.costs import Costs
from models.research.targets.verdicts import (
    MISSED,
    NOT_LOOKED_FOR,
    NOT_MEASURED,
    NOT_SHOWN,
    REACHED,
    TARGETS,
    Verdict,
)

if TYPE_CHECKING:
    from models.training.results import ModelResult

TRAINING = FIGURES / "bench_training.json"  # what `make bench-training` saves


def verdicts(results: Sequence[ModelResult], spent: Costs | None = None) -> list[Verdict]:
    """Every target of the specification's models, in the order of the page."""
    spent = spent or Costs()
    return [
        *costs.of_sizes(spent.parameters),
        *(target.verdict(results) for target in TARGETS),
        costs.of_epoch(results),
        *(costs.of_training(case, spent.training.get(case, {})) for case in costs.TRAINED),
        costs.of_preparation(spent.preparation),
        costs.of_command(spent.minutes),
    ]


def page(found: Sequence[Verdict], source: str, training: str = "") -> list[str]:
    """The Markdown lines; `training` says what was trained less than intended."""
    counts = {v: sum(f.verdict == v for f in found) for v in
              (REACHED, MISSED, NOT_SHOWN, NOT_MEASURED)}  # fmt: skip
    lines = [
        "# What the models were to reach, and what they did",
        "",
        f"Made from {source} by `python -m models.research.targets.page`. Do not edit. "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + ". *reached* for a comparison: the 95 % interval of the paired difference lies above "
        "zero (or above what the target allows); *missed*: below; *not shown*: it holds the bound. "
        "Each is judged by itself: of many comparisons between equals a few in a hundred are "
        f"reached by chance. {training}The tables are in [models.md](models.md). "
        "HCN-R and DESMIL-R are reconstructed from the paper's abstract.",
    ]
    for group in dict.fromkeys(f.group for f in found):
        lines += ["", f"## {group}", "", "| target | measured | verdict |", "| --- | --- | --- |"]
        members = [f for f in found if f.group == group]
        lines += [f"| {f.target} | {f.measured} | {f.verdict} |" for f in members]
        for why in dict.fromkeys(f.why for f in members if f.why):
            named = "; ".join(f.target for f in members if f.why == why)
            lines += ["", f"{why}: {named}." if why == NOT_LOOKED_FOR else why]
    return lines


def shortened(results: Sequence[ModelResult]) -> str:
    """A sentence on models that were trained for a part of their steps; empty if none was."""
    shares = {r.settings["budget"] for r in results if r.settings.get("budget", 1.0) < 1.0}
    if not shares:
        return ""
    parts = ", ".join(f"{share:.0%}" for share in sorted(shares))
    return (
        f"Retrieval models were trained for {parts} of their steps: this run shows that the "
        "benchmarks work, not what the models reach. "
    )


def main(
    results: Annotated[Path, typer.Option(help="folder of the results", exists=True)] = Path(
        "run/bench/models"
    ),
    docs: Annotated[Path, typer.Option(help="where the page is written")] = Path("run/bench/docs"),
    minutes: Annotated[
        float | None, typer.Option(help="what the small `make bench-models` has taken")
    ] = None,
) -> None:
    from models.figures import console, print_table
    from models.training.results import load_all

    loaded = load_all(results)
    spent = Costs(
        {size.name: costs.built_parameters(size) for size in costs.SIZES},
        json.loads(TRAINING.read_text()) if TRAINING.is_file() else {},
        costs.prepared(),
        minutes,
    )
    found = verdicts(loaded, spent)
    docs.mkdir(parents=True, exist_ok=True)
    path = docs / "model_targets.md"
    source = f"{len(loaded)} result files in `{results}`"
    path.write_text("\n".join(page(found, source, shortened(loaded))) + "\n")
    rows = [[f.group, f.target, re.sub(r"\s+", " ", f.measured), f.verdict] for f in found]
    print_table("targets", ["where", "target", "measured", "verdict"], rows)
    console.print(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
