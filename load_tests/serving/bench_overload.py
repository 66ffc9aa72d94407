"""What the whole installation answers when more is asked of it than it can: the curve of overload.

`make bench-overload`. A closed loop finds the capacity in whole answers (nothing degraded); then
requests arrive at random (Poisson) at multiples of it, with the deadline that clients have, and
every answer is counted as what it was worth: whole, degraded, refused (RESOURCE_EXHAUSTED), late
(DEADLINE_EXCEEDED), or another failure. A server that sheds load keeps its whole answers, however
much is asked. The rates take turns over several rounds. `--address` measures a running installation
instead of a temporary one. The generator runs beside the installation and takes its share of the
machine: a request that is refused costs it as much as one that is answered.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from load_tests.serving import traffic
from load_tests.serving.generator import LATENESS, REFUSAL, REFUSED, LoadProcess, LoadResult, Target
from load_tests.serving.temporary_installation import temporary_installation
from models.figures import console, median, print_machine, print_table, save

MULTIPLES = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
IN_FLIGHT = (4, 8, 16, 24)
LATE = "DEADLINE_EXCEEDED"
WORTH = ("whole", "degraded", "refused", "late", "failed")


def worth(outcomes: Counter[str]) -> Counter[str]:
    """Outcomes by what they were worth."""
    names = {"OK": "whole", REFUSED: "refused", LATE: "late"}
    counted: Counter[str] = Counter()
    for outcome, count in outcomes.items():
        # A status is written in capitals, a list's degradations are not.
        counted[names.get(outcome, "failed" if outcome.isupper() else "degraded")] += count
    return counted


def main(
    address: Annotated[str | None, typer.Option(help="host:port of a running router")] = None,
    rounds: int = 3,
    seconds: Annotated[float, typer.Option(help="of each rate in each round")] = 10.0,
    deadline_ms: Annotated[float, typer.Option(help="of every request")] = 250.0,
) -> None:
    print_machine()
    with ExitStack() as stack:
        if address is None:
            address = stack.enter_context(temporary_installation()).router
        load = stack.enter_context(LoadProcess())
        target = Target(address, traffic.recommend, deadline_ms / 1000.0, judge=traffic.judge)
        load.closed_loop(target, max(IN_FLIGHT), seconds=3.0)  # warms models and caches
        closed = {n: load.closed_loop(target, n, seconds=seconds) for n in IN_FLIGHT}
        capacity = max(r.outcomes["OK"] / r.seconds for r in closed.values())
        console.print(f"capacity {capacity:.0f} whole answers/s (closed loop)")
        results: dict[float, list[LoadResult]] = {multiple: [] for multiple in MULTIPLES}
        for i in range(rounds):
            for multiple in reversed(MULTIPLES) if i % 2 else MULTIPLES:
                results[multiple].append(
                    load.open_loop(target, multiple * capacity, seconds=seconds, seed=i)
                )
    figures: dict[str, dict[str, Any]] = {}
    for multiple, runs in results.items():
        per_s = [{what: n / r.seconds for what, n in worth(r.outcomes).items()} for r in runs]
        figures[f"{multiple:g}"] = {
            "asked": median(r.requests / r.seconds for r in runs),
            **{what: median(counts.get(what, 0.0) for counts in per_s) for what in WORTH},
            "refusal_p50_ms": median(r.percentile_ms(50, REFUSAL) for r in runs),
            "refusal_p99_ms": median(r.percentile_ms(99, REFUSAL) for r in runs),
            "sent_late_p99_ms": median(r.percentile_ms(99, LATENESS) for r in runs),
            "outcomes": dict(sum((r.outcomes for r in runs), Counter())),
        }
    peak = max(f["whole"] for f in figures.values())
    print_table(
        f"open loop, per second, deadline {deadline_ms:g} ms, medians of {rounds} rounds of"
        f" {seconds:g} s",
        [
            "x capacity",
            "asked",
            *WORTH,
            "whole, of peak",
            "refusal p50 ms",
            "p99 ms",
            "sent late p99 ms",
        ],
        [
            [
                multiple,
                *(f"{f[what]:.0f}" for what in ("asked", *WORTH)),
                f"{f['whole'] / peak:.0%}",
                f"{f['refusal_p50_ms']:.1f}",
                f"{f['refusal_p99_ms']:.1f}",
                f"{f['sent_late_p99_ms']:.1f}",
            ]
            for multiple, f in figures.items()
        ],
    )
    save("bench_overload", {"capacity": capacity, "deadline_ms": deadline_ms, "rates": figures})


if __name__ == "__main__":
    typer.run(main)
