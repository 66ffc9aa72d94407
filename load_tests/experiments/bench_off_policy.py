"""Off-policy evaluation: against real logs, against a simulator's truth, and what exploring costs.

`make bench-off-policy ARGS="--data-dir DATA"`. DATA holds `obd-small/`, the small Open Bandit data;
without it the others are run. About five minutes of one core, of which `what-if` takes nearly all;
`--only what-if` (or real, timing) runs a part.

Real logs: two policies ran in the same week, so that the clicks of one can be predicted from the
log of the other and compared with what it did earn. The uniform policy's probabilities are known
everywhere; those of Thompson sampling are logged for what it showed only: as target it stands for
its mean over the week, which the frequencies of its own log estimate. A list is one place here,
which is the context: RIPS and item-position are then the same estimator.

what-if (`what_if_runs`): users of a simulator see three of eight items and click by a
position-based model, so that the target policy's value is known exactly. Each run logs anew, and
runs an A/B test of the same two policies on users of its own beside it; the command's code reads
the router's records.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from load_tests.demo.wilson import wilson_interval
from load_tests.experiments import open_bandit
from load_tests.experiments.open_bandit import BanditLog
from load_tests.experiments.what_if_runs import what_if_runs
from models.figures import console, print_machine, print_table, save
from services.common.value_model import top
from services.experiments.lists.exploration import (
    EpsilonGreedy,
    Exploration,
    PlackettLuce,
)
from services.experiments.what_if.off_policy.errors import OffPolicyRefused
from services.experiments.what_if.off_policy.estimators import LoggedLists, rips
from services.experiments.what_if.off_policy.policy_value import PolicyValue
from services.experiments.what_if.off_policy.weights import Requirements

OPEN_BANDIT = "obd-small"
CLIP = 50.0

CANDIDATES, SHOWN, TIMED, ROUNDS = 200, 20, 400, 11


# Real logs.


def target_of(log: BanditLog, target: BanditLog) -> np.ndarray:
    """float64[3, items]: the target policy at each place."""
    if target.policy == "random":
        return np.full((open_bandit.POSITIONS, log.num_items), 1 / log.num_items)
    counts = np.zeros((open_bandit.POSITIONS, log.num_items))
    np.add.at(counts, (target.positions, target.items), 1)
    return counts / counts.sum(axis=1, keepdims=True)


ANYTHING = Requirements(min_effective_sample_size=0)


def real_logs(folder: Path) -> None:
    """Each policy evaluated on the other's log, men and women."""
    rows: list[list[str]] = []
    refusals: dict[str, str] = {}
    for campaign in ("men", "women"):
        logs = {p: open_bandit.read(folder, p, campaign) for p in open_bandit.POLICIES}
        for of, by in (("random", "bts"), ("bts", "random")):
            name, log, earned = f"{campaign}: {of}", logs[by], logs[of].clicks
            low, high = wilson_interval(int(earned.sum()), len(earned))
            rows.append([name, "earned itself", *percent(earned.mean(), low, high), "", "", ""])
            target = target_of(log, logs[of])[log.positions]
            of_logged = target[np.arange(len(target)), log.items]
            rewards, propensities, to = (
                each[:, None] for each in (log.clicks, log.propensities, of_logged)
            )
            lists = LoggedLists(rewards, propensities, to, np.arange(len(target)))
            found = rips(lists, ANYTHING)
            try:
                rows.append([name, "estimated", *cells(rips(lists))])
            except OffPolicyRefused as refused:
                rows.append([name, "estimated", "REFUSED", "", *cells(found)[2:]])
                refusals[name] = str(refused)
            if found.largest_weight > CLIP:
                made = cells(rips(lists, Requirements(clip=CLIP)))
                rows.append([name, f"estimated, clip {CLIP:g}", *made])
    print_table(
        "Open Bandit: clicks per impression of one policy, from the log of the other",
        ("target", "by", "value", "95 % interval", "ESS", "largest weight", "clip bias <"),
        rows,
    )
    for name, refusal in refusals.items():
        console.print(f"{name}: {refusal}")


def percent(value: float, low: float, high: float) -> list[str]:
    return [f"{value:.3%}", f"{low:.3%} .. {high:.3%}"]


def cells(made: PolicyValue) -> list[str]:
    return [
        *percent(made.value, made.low, made.high),
        f"{made.effective_sample_size:,.1f}",
        f"{made.largest_weight:,.1f}",
        f"{made.bias_bound:.2%}" if made.clipped_share else "",
    ]


# What exploring costs a request.


def timing() -> None:
    """CPU µs of a list: each policy beside the ranking that it starts from."""
    generator = np.random.default_rng(0)
    scores = generator.beta(1, 20, size=CANDIDATES).astype(np.float32)
    logits = np.log(np.sort(scores.astype(float))[::-1])
    policies: dict[str, Exploration] = {
        "epsilon 0.1, top 50": EpsilonGreedy(0.1, 50),
        "epsilon 0.1, top 200": EpsilonGreedy(0.1, CANDIDATES),
        "Plackett-Luce, top 50": PlackettLuce(1, 50),
        "Plackett-Luce, top 200": PlackettLuce(1, CANDIDATES),
    }
    calls: dict[str, Callable[[], object]] = {"rerank.top, no exploration": lambda: top(scores, 20)}
    for name, policy in policies.items():
        calls[name] = lambda p=policy: p.draw(logits, SHOWN, generator)  # type: ignore[misc]
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(TIMED):
                call()
            rounds[name].append((time.process_time() - start) / TIMED * 1e6)
    print_table(
        f"Exploration of {CANDIDATES} candidates, {SHOWN} places, propensities included",
        ("", "CPU µs (median)", "least"),
        [(n, f"{statistics.median(us):.1f}", f"{min(us):.1f}") for n, us in rounds.items()],
    )


class Part(StrEnum):
    REAL = "real"
    WHAT_IF = "what-if"
    TIMING = "timing"


def main(
    data_dir: Annotated[
        Path | None, typer.Option(help=f"folder that holds {OPEN_BANDIT}/", exists=True)
    ] = None,
    runs: Annotated[int, typer.Option(help="of the simulator")] = 500,
    seed: Annotated[int, typer.Option()] = 0,
    only: Annotated[Part | None, typer.Option(help="a part instead of all")] = None,
) -> None:
    print_machine()
    started = time.process_time()
    if data_dir is not None and only in (None, Part.REAL):
        real_logs(data_dir / OPEN_BANDIT)
    if only in (None, Part.WHAT_IF):
        what_if_runs(runs, seed)
    if only in (None, Part.TIMING):
        timing()
    console.print(f"took {time.process_time() - started:.0f} s of CPU")
    save("bench_off_policy", {})


if __name__ == "__main__":
    typer.run(main)
