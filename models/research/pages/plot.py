"""The plot of a table: the primary metric of each model, and its gain over a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.research.comparison import ResultTable, lower_is_better
from models.research.pages.cards import is_own_model

# Okabe-Ito: told apart with any colour vision, and by shape.
MODEL_COLOUR, BASELINE_COLOUR, LINE_COLOUR = "#0072B2", "#D55E00", "#555555"


def plot(table: ResultTable, path: Path) -> None:
    """Dot plot: the primary metric with intervals over units, and the gain over a reference.

    Of several references it shows the first.

    The same results give the same file, byte for byte.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = [r for r in table.rows if table.primary in r.result.metrics]
    names = [r.result.model for r in rows]
    with mpl.rc_context({"svg.hashsalt": "tandem", "font.size": 9, "svg.fonttype": "path"}):
        layout = ConstrainedLayoutEngine(wspace=0.06)  # tick labels of two axes must not meet
        figure = Figure(figsize=(9, 1.3 + 0.3 * len(rows)), layout=layout)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        for at, row in enumerate(rows):
            own = is_own_model(row.result)
            colour = MODEL_COLOUR if own else BASELINE_COLOUR
            marker = "o" if own else "s"
            values = row.result.metrics[table.primary]
            if row.interval is not None:
                left.plot([row.interval.low, row.interval.high], [at, at], color=colour, lw=1.5)
            if len(values) > 1:
                left.plot(values, [at] * len(values), "|", color=colour, ms=9, mew=1)
            left.plot(np.mean(values), at, marker, color=colour, ms=6)
            if row.difference is not None:
                gain = row.difference.interval
                right.plot([gain.low, gain.high], [at, at], color=colour, lw=1.5)
                right.plot(gain.mean, at, marker, color=colour, ms=6)
        left.set_yticks(range(len(rows)), names)
        left.set_ylim(len(rows) - 0.5, -0.5)
        direction = " (lower is better)" if lower_is_better(table.primary) else ""
        left.set_xlabel(f"{table.primary}{direction}")
        right.axvline(0, color=LINE_COLOUR, lw=1, ls="--")
        references = {r.difference.reference for r in rows if r.difference}
        over = next(iter(references)) if len(references) == 1 else "its first reference"
        right.set_xlabel(f"gain over {over}")
        for axis in (left, right):
            axis.grid(axis="x", color="#DDDDDD", lw=0.6)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(axis="y", length=0)
            axis.locator_params(axis="x", nbins=5)
        left.plot([], [], "o", color=MODEL_COLOUR, label="Tandem's models and their variants")
        left.plot([], [], "s", color=BASELINE_COLOUR, label="baseline")
        left.plot([], [], "|", color=LINE_COLOUR, ms=9, label="one seed")
        unit = table.rows[0].result.unit
        figure.suptitle(f"{table.name}: mean and 95 % interval over {unit}s", x=0.01, ha="left")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False
        )
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
