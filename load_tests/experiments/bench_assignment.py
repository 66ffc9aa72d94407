"""CPU µs per assignment: 20 experiments in 5 layers against one bare hash, in the same run.

`make bench-assignment`. Rounds of both are interleaved and medians compared, so that a busy moment
of the machine meets both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import xxhash

from models.figures import print_table, save
from services.experiments.assign.assignment import Assigner
from services.experiments.declare.config import (
    BUCKETS,
    USER,
    Arm,
    Experiment,
    ExperimentsConfig,
    Holdout,
    Layer,
)
from services.experiments.declare.parameters import IN_EVERY_DOMAIN
from services.experiments.declare.targeting import Condition

LAYERS, EXPERIMENTS, ROUNDS, USERS = 5, 4, 21, 20_000


def config() -> ExperimentsConfig:
    """Five layers of four experiments that fill them, three arms each, one parameter per layer."""
    names = list(IN_EVERY_DOMAIN)[:LAYERS]
    width = BUCKETS // EXPERIMENTS
    layers = []
    for i, parameter in enumerate(names):
        default = IN_EVERY_DOMAIN[parameter].default
        arms = tuple(
            Arm(name, lo, hi, 9_000, {parameter: default})
            for name, lo, hi in (("a", 0, 5_000), ("b", 5_000, 8_000), ("c", 8_000, BUCKETS))
        )
        experiments = tuple(
            Experiment(f"e{i}{j}", f"e{i}{j}", "user", (j * width, (j + 1) * width), arms, {}, True)
            for j in range(EXPERIMENTS)
        )
        layers.append(Layer(f"layer{i}", f"layer{i}", (parameter,), experiments))
    return ExperimentsConfig(tuple(layers))


def conditional(plain: ExperimentsConfig) -> ExperimentsConfig:
    """The same with a holdout, and with both bounds and two conditions on every experiment."""
    where = Condition("", "in", ("home", "detail")), Condition("hour", "at_least", (18.0,))
    layers = tuple(
        replace(
            layer,
            experiments=tuple(
                replace(e, start_ms=0, stop_ms=2, where=where) for e in layer.experiments
            ),
        )
        for layer in plain.layers
    )
    return ExperimentsConfig(layers, Holdout("holdout", 1))


def of_all_kinds(plain: ExperimentsConfig) -> ExperimentsConfig:
    """The same with a condition on the user in every experiment, a stopped arm in each, one layer
    by device, and one whose experiments interleave one after the other."""
    where = (Condition("click", "at_least", (10.0,), of_user=True),)
    layers = []
    for i, layer in enumerate(plain.layers):
        experiments = [
            replace(e, where=where, unit=USER if i else "device") for e in layer.experiments
        ]
        if i == 1:
            experiments = [
                replace(
                    e,
                    arms=tuple(replace(a, first=0, end=0) for a in e.arms[:2]),
                    interleave="team_draft",
                    start_ms=j,
                    stop_ms=j + 1,
                )
                for j, e in enumerate(experiments)
            ]
        else:
            experiments = [
                replace(e, arms=(*e.arms[:2], replace(e.arms[2], stopped=True)))
                for e in experiments
            ]
        layers.append(replace(layer, experiments=tuple(experiments)))
    return ExperimentsConfig(tuple(layers), units=("device",))


def us_per_call(call: Callable[[str], object], users: list[str]) -> float:
    """CPU time of one call in µs, the loop around it included."""
    start = time.process_time()
    for user in users:
        call(user)
    return (time.process_time() - start) / len(users) * 1e6


def main() -> None:
    users = [f"user-{i}" for i in range(USERS)]
    assigner, opened = Assigner(config()), Assigner(conditional(config()))
    kinds = Assigner(of_all_kinds(config()))
    context, device, counts = {"hour": 20.0}, {"device": "d-1"}, {"click": 12.0, "like": 3.0}

    def assign(user: str) -> object:
        return assigner.assign(user, now_ms=0)

    def assign_opened(user: str) -> object:
        return opened.assign(user, now_ms=1, surface="home", context=context)

    def assign_kinds(user: str) -> object:
        return kinds.assign(user, now_ms=1, unit_ids=device, user=counts)

    def bare_hash(user: str) -> int:
        return xxhash.xxh3_64_intdigest(b"salt:" + user.encode())

    returning = users[:1_000] * (USERS // 1_000)
    calls: dict[str, tuple[Callable[[str], object], list[str]]] = {
        f"{USERS:,} users, each once": (assign, users),  # nearly as many combinations of arms
        "1,000 users over and over": (assign, returning),  # decisions come from the cache
        "new, every experiment conditional": (assign_opened, users),
        "returning, likewise": (assign_opened, returning),
        "returning, of all kinds": (assign_kinds, returning),
        "one bare hash": (bare_hash, users),
    }
    rounds = [[us_per_call(*call) for call in calls.values()] for _ in range(ROUNDS)]
    medians = [statistics.median(of_call) for of_call in zip(*rounds, strict=True)]
    in_force = sum(len(assigner.assign(user, now_ms=0).assignments) for user in users) / len(users)
    print_table(
        f"{LAYERS * EXPERIMENTS} experiments in {LAYERS} layers, {in_force:.2f} arms per user",
        ("users", "CPU µs", "ratio"),
        [
            (name, f"{us:.2f}", f"{us / medians[-1]:.1f}")
            for name, us in zip(calls, medians, strict=True)
        ],
    )
    save("bench_assignment", {"cpu_us": dict(zip(calls, medians, strict=True))})


if __name__ == "__main__":
    main()
