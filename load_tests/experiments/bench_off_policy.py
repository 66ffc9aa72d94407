"""Off-policy evaluation: against real logs, against a simulator's truth, and what exploring costs.

`make bench-off-policy ARGS="--data-dir DATA"`. DATA holds `obd-small/`, the small Open Bandit data;
without it the others are run. About six minutes of one core, of which `what-if` takes five;
`--only what-if` (or real, simulator, timing) runs a part.

Real logs: two policies ran in the same week, so that the clicks of one can be predicted from the
log of the other and compared with what it did earn. The uniform policy's probabilities are known
everywhere. Those of Thompson sampling are logged for what it showed only: as target it stands for
its mean over the week, which the frequencies of its own log estimate.

The simulator: users of five kinds see three of eight items and click by a position-based model, so
that the target policy's value is known exactly. Each run logs anew, and runs an A/B test of the
same two policies on users of its own beside it. what-if (`what_if_runs`): the same for the command,
from the router's records on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from load_tests.demo.wilson import wilson_interval
from load_tests.experiments import open_bandit
from load_tests.experiments.open_bandit import BanditLog
from load_tests.experiments.what_if_runs import what_if_runs
from models.research.figures import console, print_machine, print_table
from services.common.value_model import top
from services.experiments.lists.exploration import (
    EpsilonGreedy,
    Exploration,
    PlackettLuce,
    rank_logits,
)
from services.experiments.what_if.off_policy.actions import (
    cross_fit,
    doubly_robust,
    folds_of,
    ips,
    snips,
)
from services.experiments.what_if.off_policy.errors import OffPolicyRefused
from services.experiments.what_if.off_policy.estimate import Estimate
from services.experiments.what_if.off_policy.logs import LoggedActions, LoggedSlates, Requirements
from services.experiments.what_if.off_policy.slates import (
    SlateMoments,
    pseudo_inverse,
    rips,
    slate_ips,
    slate_snips,
)

OPEN_BANDIT = "obd-small"
CLIP = 50.0
FOLDS = 5
PRIOR = 20.0  # decisions that a cell's mean reward is shrunk by

KINDS, ITEMS, PLACES = 5, 8, 3
EXAMINATION = np.array([1.0, 0.6, 0.4])
REQUESTS = 5_000
PER_USER = 5  # requests of a user, where users are units

CANDIDATES, SHOWN, TIMED, ROUNDS = 200, 20, 400, 11


# Real logs.


def target_of(log: BanditLog, target: BanditLog) -> np.ndarray:
    """float64[3, items]: the target policy at each place."""
    if target.policy == "random":
        return np.full((open_bandit.POSITIONS, log.num_items), 1 / log.num_items)
    counts = np.zeros((open_bandit.POSITIONS, log.num_items))
    np.add.at(counts, (target.positions, target.items), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def cell_means(
    cells: np.ndarray, columns: np.ndarray, rewards: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """float64[shape]: the mean reward of each cell, shrunk towards that of all."""
    at = cells * shape[1] + columns
    count = np.bincount(at, minlength=shape[0] * shape[1])
    total = np.bincount(at, weights=rewards, minlength=shape[0] * shape[1])
    return ((total + PRIOR * rewards.mean()) / (count + PRIOR)).reshape(shape)


def cross_fitted(
    cells: np.ndarray, columns: np.ndarray, rewards: np.ndarray, shape: tuple[int, int], seed: int
) -> np.ndarray:
    """float64[n, shape[1]]: rewards of all actions, by cell means of the other folds."""
    folds = folds_of(np.arange(len(rewards)), FOLDS, np.random.default_rng(seed))
    return cross_fit(
        folds,
        fit=lambda rows: cell_means(cells[rows], columns[rows], rewards[rows], shape),
        predict=lambda means, rows: means[cells[rows]],
    )


def reference(log: LoggedActions, predictions: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """The estimates and the effective sample size, one decision after the other, summed exactly."""
    weights, earned, robust = [], [], []
    for i, action in enumerate(log.actions.tolist()):
        weight = float(log.target[i]) / float(log.propensities[i])
        reward, predicted = float(log.rewards[i]), predictions[i].tolist()
        expected = math.fsum(t * q for t, q in zip(target[i].tolist(), predicted, strict=True))
        weights.append(weight)
        earned.append(weight * reward)
        robust.append(expected + weight * (reward - predicted[action]))
    n, total = len(weights), math.fsum(weights)
    return {
        "IPS": math.fsum(earned) / n,
        "SNIPS": math.fsum(earned) / total,
        "DR": math.fsum(robust) / n,
        "ESS": total**2 / math.fsum(w * w for w in weights),
    }


Estimator = Callable[[Requirements], Estimate]
ANYTHING = Requirements(min_effective_sample_size=0)


def real_logs(folder: Path) -> None:
    """Each policy evaluated on the other's log, men and women."""
    rows: list[list[str]] = []
    refusals: dict[str, str] = {}
    worst = 0.0
    for campaign in ("men", "women"):
        logs = {p: open_bandit.read(folder, p, campaign) for p in open_bandit.POLICIES}
        for of, by in (("random", "bts"), ("bts", "random")):
            name, log, earned = f"{campaign}: {of}", logs[by], logs[of].clicks
            low, high = wilson_interval(int(earned.sum()), len(earned))
            rows.append([name, "earned itself", *percent(earned.mean(), low, high), "", "", ""])
            target = target_of(log, logs[of])[log.positions]
            of_logged = target[np.arange(len(target)), log.items]
            actions = LoggedActions(log.items, log.clicks, log.propensities, of_logged)
            shape = (open_bandit.POSITIONS, log.num_items)
            predictions = cross_fitted(log.positions, log.items, log.clicks, shape, seed=0)
            estimators: dict[str, Estimator] = {
                "IPS": partial(ips, actions),
                "SNIPS": partial(snips, actions),
                "DR": partial(doubly_robust, actions, predictions, target),
            }
            expected = reference(actions, predictions, target)
            for estimator_name, estimator in estimators.items():
                found = estimator(ANYTHING)
                worst = max(
                    worst,
                    abs(found.value / expected[estimator_name] - 1),
                    abs(found.effective_sample_size / expected["ESS"] - 1),
                )
                try:
                    rows.append([name, estimator_name, *cells(estimator(Requirements()))])
                except OffPolicyRefused as refused:
                    rows.append([name, estimator_name, "REFUSED", "", *cells(found)[2:]])
                    refusals[name] = str(refused)
                if found.largest_weight > CLIP:
                    made = cells(estimator(Requirements(clip=CLIP)))
                    rows.append([name, f"{estimator_name}, clip {CLIP:g}", *made])
    print_table(
        "Open Bandit: clicks per impression of one policy, from the log of the other",
        ("target", "estimator", "value", "95 % interval", "ESS", "largest weight", "clip bias <"),
        rows,
    )
    for name, refusal in refusals.items():
        console.print(f"{name}: {refusal}")
    console.print(f"Largest relative difference to the reference loop: {worst:.1e}")


def percent(value: float, low: float, high: float) -> list[str]:
    return [f"{value:.3%}", f"{low:.3%} .. {high:.3%}"]


def cells(made: Estimate) -> list[str]:
    return [
        *percent(made.value, made.low, made.high),
        f"{made.effective_sample_size:,.1f}",
        f"{made.largest_weight:,.1f}",
        f"{made.bias_bound:.2%}" if made.clipped_share else "",
    ]


# The simulator.


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """All lists of three items with everything about them, per kind of user; L lists.

    lists: int64[L, 3]. clicks: float64[kinds, L, 3] click probabilities. logging, target:
    float64[kinds, L, 3], probability at each place given those above. inverse: float64[kinds, L],
    weights of the pseudo-inverse. values: of the logging and the target policy.
    """

    lists: np.ndarray
    clicks: np.ndarray
    logging: np.ndarray
    target: np.ndarray
    inverse: np.ndarray
    values: tuple[float, float]


def world(seed: int) -> World:
    """Two rankers that know the items' attraction more or less well, and explore."""
    generator = np.random.default_rng(seed)
    attraction = generator.beta(1.5, 6, size=(KINDS, ITEMS))
    lists = np.array(list(permutations(range(ITEMS), PLACES)))
    policies = ((0.5, PlackettLuce(1.2, ITEMS)), (0.15, PlackettLuce(0.8, ITEMS)))
    made = []
    for error, policy in policies:
        score = np.log(attraction) + generator.normal(0, 2 * error, size=attraction.shape)
        ranks = (-score).argsort(axis=1).argsort(axis=1)  # of each item, for each kind
        by_kind = [policy.propensities(ranks[k][lists], rank_logits(ITEMS)) for k in range(KINDS)]
        made.append(np.stack(by_kind))
    logging, target = made
    inverse = []
    for k in range(KINDS):
        marginals = np.zeros((PLACES, ITEMS))
        for place in range(PLACES):
            np.add.at(marginals[place], lists[:, place], target[k].prod(axis=1))
        moments = SlateMoments.of_lists(lists, logging[k].prod(axis=1), ITEMS)
        inverse.append(moments.weights(lists, marginals))
    clicks = attraction[:, lists] * EXAMINATION
    earned = [float((p.prod(axis=2) * clicks.sum(axis=2)).sum() / KINDS) for p in made]
    return World(lists, clicks, logging, target, np.stack(inverse), (earned[0], earned[1]))


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Requests of one policy: kinds int64[n], which list int64[n], clicks float64[n, 3]."""

    kinds: np.ndarray
    which: np.ndarray
    clicks: np.ndarray


def traffic(
    world: World, policy: np.ndarray, generator: np.random.Generator, per_user: int = 1
) -> Traffic:
    """Requests of users of a random kind; users differ in how readily they click (mean 1)."""
    users = REQUESTS // per_user
    kinds = np.repeat(generator.integers(KINDS, size=users), per_user)
    eagerness = np.repeat(generator.choice([0.2, 1.0, 1.8], size=users), per_user)
    cumulated = policy.prod(axis=2).cumsum(axis=1)
    cumulated /= cumulated[:, -1:]
    steps = (cumulated + np.arange(KINDS)[:, None]).reshape(-1)
    which = steps.searchsorted(kinds + generator.random(REQUESTS), side="right")
    which = np.minimum(which - kinds * len(world.lists), len(world.lists) - 1)
    probabilities = world.clicks[kinds, which] * eagerness[:, None]
    clicks = (generator.random(probabilities.shape) < probabilities).astype(float)
    return Traffic(kinds, which, clicks)


def slates_of(world: World, logged: Traffic, units: np.ndarray | None = None) -> LoggedSlates:
    return LoggedSlates(
        world.lists[logged.which],
        logged.clicks,
        world.logging[logged.kinds, logged.which],
        world.target[logged.kinds, logged.which],
        units,
    )


def estimates(world: World, generator: np.random.Generator) -> dict[str, Estimate]:
    """Every estimator on one run's log; the first three see the first place only."""
    logged = traffic(world, world.logging, generator)
    slates = slates_of(world, logged)
    first = LoggedActions(
        slates.slates[:, 0], slates.rewards[:, 0], slates.propensities[:, 0], slates.target[:, 0]
    )
    target = np.zeros((KINDS, ITEMS))
    for item in range(ITEMS):
        at = int(np.flatnonzero(world.lists[:, 0] == item)[0])
        target[:, item] = world.target[:, at, 0]
    seed = int(generator.integers(2**32))
    predictions = cross_fitted(logged.kinds, first.actions, first.rewards, (KINDS, ITEMS), seed)
    made = {
        "place 1: IPS": ips(first),
        "place 1: SNIPS": snips(first),
        "place 1: DR": doubly_robust(first, predictions, target[logged.kinds]),
        "slate IPS": slate_ips(slates),
        "slate SNIPS": slate_snips(slates),
        "RIPS": rips(slates),
        "RIPS, not normalised": rips(slates, normalised=False),
        "pseudo-inverse": pseudo_inverse(slates, world.inverse[logged.kinds, logged.which]),
    }
    few = traffic(world, world.logging, generator, PER_USER)
    units = np.arange(REQUESTS) // PER_USER
    made[f"RIPS, {PER_USER} per user"] = rips(slates_of(world, few, units))
    made["  as if independent"] = rips(slates_of(world, few))
    return made


def simulated(runs: int, seed: int) -> None:
    """Coverage of the intervals and agreement with an A/B test, over runs."""
    made = world(seed)
    generator = np.random.default_rng(seed + 1)
    first_value = sum(
        float((made.target[k].prod(axis=1) * made.clicks[k, :, 0]).sum()) / KINDS
        for k in range(KINDS)
    )
    found: dict[str, list[tuple[Estimate, float, float]]] = {}
    refused = 0
    for _ in range(runs):
        arm = traffic(made, made.target, generator).clicks
        try:
            by_name = estimates(made, generator)
        except OffPolicyRefused:
            refused += 1
            continue
        for name, estimate in by_name.items():
            earned = arm[:, 0] if name.startswith("place 1") else arm.sum(axis=1)
            error = float(earned.std(ddof=1)) / len(earned) ** 0.5
            found.setdefault(name, []).append((estimate, float(earned.mean()), error))
    rows = []
    for name, results in found.items():
        truth = first_value if name.startswith("place 1") else made.values[1]
        values = np.array([e.value for e, _, _ in results])
        errors = np.array([e.standard_error for e, _, _ in results])
        covered = [e.low <= truth <= e.high for e, _, _ in results]
        agree = [
            abs(e.value - mean) <= 1.96 * math.hypot(e.standard_error, error)
            for e, mean, error in results
        ]
        low, high = wilson_interval(sum(covered), len(covered))
        arm_error = statistics.fmean(error for _, _, error in results)
        rows.append(
            (
                name,
                f"{truth:.4f}",
                f"{values.mean() - truth:+.4f}",
                f"{values.std(ddof=1):.4f}",
                f"{errors.mean():.4f}",
                f"{statistics.fmean(covered):.1%} ({low * 100:.1f}..{high * 100:.1f})",
                f"{statistics.fmean(e.effective_sample_size for e, _, _ in results):,.0f}",
                f"{statistics.fmean(agree):.1%}",
                f"{(errors.mean() / arm_error) ** 2:.1f}",
            )
        )
    print_table(
        f"Simulator: {len(covered)} runs of {REQUESTS:,} requests ({refused} refused); the logging "
        f"policy earns {made.values[0]:.4f} clicks a list, the target {made.values[1]:.4f}",
        ("estimator", "truth", "bias", "spread", "error", "interval covers", "ESS", "A/B agrees",
         "cost"),
        rows,
    )  # fmt: skip
    console.print(
        "spread: standard deviation of the estimates over runs; error: mean standard error; cost: "
        "logged requests per request of the A/B test's arm at equal precision"
    )


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
    SIMULATOR = "simulator"
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
    if only in (None, Part.SIMULATOR):
        simulated(runs, seed)
    if only in (None, Part.WHAT_IF):
        what_if_runs(runs, seed)
    if only in (None, Part.TIMING):
        timing()
    console.print(f"took {time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    typer.run(main)
