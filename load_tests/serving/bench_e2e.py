"""p50 and p99 of Recommend through the whole installation, below its capacity.

`make bench-e2e`. A closed loop finds the capacity; then requests arrive at random (Poisson) at
shares of it and latencies count from when each request was due. The rates take turns over several
rounds. `--address` measures a running installation instead of a temporary one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from load_tests.serving import traffic
from load_tests.serving.generator import LATENESS, LoadProcess, LoadResult, Target
from load_tests.serving.temporary_installation import temporary_installation
from models.figures import median, print_machine, print_table, save

SHARES = (0.2, 0.4, 0.6, 0.8)
IN_FLIGHT = (1, 2, 4, 8, 16)


def not_ok(outcomes: Mapping[str, int]) -> str:
    """The outcomes other than full answers, as text."""
    return ", ".join(f"{n} {what}" for what, n in outcomes.items() if what != "OK") or "0"


def main(
    address: Annotated[str | None, typer.Option(help="host:port of a running router")] = None,
    rounds: int = 3,
    seconds: Annotated[float, typer.Option(help="of each rate in each round")] = 10.0,
) -> None:
    print_machine()
    with ExitStack() as stack:
        if address is None:
            address = stack.enter_context(temporary_installation()).router
        load = stack.enter_context(LoadProcess())
        target = Target(address, traffic.recommend, timeout_s=2.0, judge=traffic.judge)
        load.closed_loop(target, max(IN_FLIGHT), seconds=3.0)  # warms models and caches
        closed = {n: load.closed_loop(target, n, seconds=seconds) for n in IN_FLIGHT}
        # Past a certain number in flight answers come degraded: only full ones are capacity.
        full = {n: result.outcomes["OK"] / result.seconds for n, result in closed.items()}
        capacity = max(full.values())
        print_table(
            "closed loop",
            ["in flight", "full answers/s", "p50 ms", "not OK"],
            [
                [n, f"{full[n]:.0f}", f"{r.percentile_ms(50):.1f}", not_ok(r.outcomes)]
                for n, r in closed.items()
            ],
        )
        results: dict[float, list[LoadResult]] = {share: [] for share in SHARES}
        for i in range(rounds):
            for share in SHARES if i % 2 else reversed(SHARES):
                results[share].append(
                    load.open_loop(target, share * capacity, seconds=seconds, seed=i)
                )
    figures: dict[str, dict[str, Any]] = {
        f"{share:.0%}": {
            "rate": share * capacity,
            "requests": sum(r.requests for r in runs),
            "p50_ms": median(r.percentile_ms(50) for r in runs),
            "p99_ms": median(r.percentile_ms(99) for r in runs),
            "sent_late_p99_ms": median(r.percentile_ms(99, LATENESS) for r in runs),
            "outcomes": dict(sum((r.outcomes for r in runs), Counter())),
        }
        for share, runs in results.items()
    }
    print_table(
        f"open loop from due time, medians of {rounds} rounds of {seconds:g} s",
        ["of capacity", "requests/s", "requests", "p50 ms", "p99 ms", "sent late p99 ms", "not OK"],
        [
            [
                share,
                f"{f['rate']:.0f}",
                f["requests"],
                *(f"{f[key]:.1f}" for key in ("p50_ms", "p99_ms", "sent_late_p99_ms")),
                not_ok(f["outcomes"]),
            ]
            for share, f in figures.items()
        ],
    )
    save("bench_e2e", {"capacity": capacity, "closed_loop": full, "shares": figures})


if __name__ == "__main__":
    typer.run(main)
