"""Which experiments may not run at the same time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.yaml_reader.places import Place
from services.experiments.declare.config import Experiment
from services.experiments.declare.reader.files import Files


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
    """The places (j, i), j < i, of the enabled ones that share a bucket at some instant."""
    enabled = [i for i, e in enumerate(experiments) if e.enabled and e.buckets[0] < e.buckets[1]]
    bounds = [
        (*experiments[i].buckets, experiments[i].start_ms, experiments[i].stop_ms) for i in enabled
    ]
    # Each with all before it at once, so that thousands take no time worth speaking of.
    first, end, start_ms, stop_ms = np.array(bounds, np.float64).reshape(-1, 4).T
    found = []
    for at, i in enumerate(enabled):
        share = (first[:at] < end[at]) & (first[at] < end[:at])
        at_once = (start_ms[:at] < stop_ms[at]) & (start_ms[at] < stop_ms[:at])
        found += [(enabled[j], i) for j in np.flatnonzero(share & at_once)]
    return sorted(found)


def _overlap(one: Experiment, other: Experiment) -> bool:
    """Whether there is an instant at which both run."""
    return one.start_ms < other.stop_ms and other.start_ms < one.stop_ms
