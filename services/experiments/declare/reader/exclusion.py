"""Which experiments may not run at the same time."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence

from services.experiments.declare.config import Experiment
from services.experiments.declare.reader.places import Files, Place


def check_exclusion(
    experiments: Sequence[Experiment], places: Sequence[Place], files: Files
) -> None:
    """Enabled experiments of a layer share a unit; and, if there is an instant at which both
    run, no bucket and no allow-listed id."""
    enabled = [i for i, experiment in enumerate(experiments) if experiment.enabled]
    for i in enabled[1:]:
        if experiments[i].unit != (unit := experiments[enabled[0]].unit):
            files.add(
                places[i].under("unit"),
                f"{places[enabled[0]].path} has the unit {unit!r}",
                "Use one unit for all experiments of a layer, or another layer",
            )
    for j, i in shared_buckets(experiments):
        lo = max(experiments[i].buckets[0], experiments[j].buckets[0])
        hi = min(experiments[i].buckets[1], experiments[j].buckets[1])
        files.add(
            places[i].under("buckets"),
            f"buckets [{lo}, {hi}) also belong to {places[j].path}",
            "Give the experiments of a layer separate buckets or times, or another layer",
        )
    listing: dict[str, list[int]] = {}
    for i in enabled:
        for unit in experiments[i].allow_list:
            for j in listing.setdefault(unit, []):
                if _overlap(experiments[i], experiments[j]):
                    files.add(
                        places[i].under(f"allow_list.{unit}"),
                        f"{places[j].path} lists the same id",
                        "List an id in one experiment of a layer only",
                    )
            listing[unit].append(i)


def check_interleaving(
    experiments: Sequence[Experiment], places: Sequence[Place], files: Files
) -> None:
    """A request can be interleaved once only, whatever the layers and files; of one layer it is
    in one experiment at most (`check_exclusion`)."""
    own = [
        (experiment, place)
        for experiment, place in zip(experiments, places, strict=True)
        if experiment.interleave and experiment.enabled
    ]
    for experiment, place in own:
        for other, of_other in files.interleaving:
            if _overlap(experiment, other):
                files.add(
                    place.under("interleave"),
                    f"{of_other} interleaves at the same time, and a request can be "
                    "interleaved once",
                    "Give them separate times, put both into one layer on separate buckets, or "
                    "switch one off with `enabled: false`",
                )
    files.interleaving += own


def shared_buckets(experiments: Sequence[Experiment]) -> list[tuple[int, int]]:
    """The places (j, i), j < i, of the enabled ones that share a bucket at some instant.

    From start to start, those that run then are kept in the order of their buckets, where an
    experiment has its rivals beside it: O(n log n) as long as there are none. Who has rivals is
    kept apart, and everybody who starts later is compared with each of them.
    """
    order = sorted(
        (i for i, e in enumerate(experiments) if e.enabled and e.buckets[0] < e.buckets[1]),
        key=lambda i: (experiments[i].start_ms, i),
    )
    running: list[tuple[int, int, int]] = []  # (first, end, place), no two of them with a bucket
    rivals: list[int] = []
    ending: list[tuple[float, tuple[int, int, int]]] = []  # a heap of the running
    found = set()
    for i in order:
        own = experiments[i]
        while ending and ending[0][0] <= own.start_ms:
            del running[bisect_left(running, heapq.heappop(ending)[1])]
        first, end = own.buckets
        at = bisect_left(running, (first,))
        at -= at > 0 and running[at - 1][1] > first
        beside = at
        while beside < len(running) and running[beside][0] < end:
            beside += 1
        met = [place for _, _, place in running[at:beside]] + [
            j
            for j in rivals
            if _overlap(own, experiments[j])
            and first < experiments[j].buckets[1]
            and experiments[j].buckets[0] < end
        ]
        if met:
            found |= {(min(i, j), max(i, j)) for j in met}
            rivals.append(i)
        else:
            running.insert(at, (first, end, i))
            heapq.heappush(ending, (own.stop_ms, (first, end, i)))
    return sorted(found)


def _overlap(one: Experiment, other: Experiment) -> bool:
    """Whether there is an instant at which both run."""
    return one.start_ms < other.stop_ms and other.start_ms < one.stop_ms
