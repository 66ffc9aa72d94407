"""The split of an experiment: its arms' sizes relative to each other, as records carry it.

Of the arms that have weight, in the file's order, by the greatest common divisor: "1:1", "10:1".
Traffic of the whole experiment and a ramp grow all arms alike and leave it as it is; an edit of one
arm's own `traffic` changes it. A stopped arm keeps its size in it: stops are epochs (`changes`).
Arms without weight are not in it, so that adding one changes nothing. An experiment that
interleaves has none.

What is no split of the experiment (older records have none, a broken writer's has other parts)
counts as the one in the file, and nothing is said of it.
"""

from __future__ import annotations

import math
import re

from services.experiments.declare.config import Arm, Experiment

_SPLIT = re.compile(r"[0-9]{1,9}(?::[0-9]{1,9})*")


def size_of(arm: Arm) -> float:
    """Share of the experiment's units that get the arm, in any unit."""
    return float((arm.end - arm.first) * arm.enrolled)


def split_of(experiment: Experiment) -> str:
    """The split that is in force; empty if it interleaves, or no arm gets units."""
    if experiment.interleave:
        return ""
    return _reduced([(arm.end - arm.first) * arm.enrolled for arm in _weighted(experiment)])


def well_formed(text: str) -> str:
    """The text if it may be some experiment's split, else nothing."""
    return text if _SPLIT.fullmatch(text) else ""


def known_split(text: str, experiment: Experiment) -> str:
    """What a record says as a split of the experiment: the file's, if it is none."""
    parts = _parts(text, experiment)
    return (_reduced(parts) if parts else "") or split_of(experiment)


def sizes_in(split: str, experiment: Experiment) -> dict[str, float]:
    """Every arm's size in a split, in any unit; those of the file where it is none."""
    parts = _parts(split, experiment)
    if not parts:
        return {arm.name: size_of(arm) for arm in experiment.arms}
    weighted = {a.name: float(n) for a, n in zip(_weighted(experiment), parts, strict=True)}
    return {arm.name: weighted.get(arm.name, 0.0) for arm in experiment.arms}


def _parts(split: str, experiment: Experiment) -> list[int]:
    """One number per arm with weight; nothing if it has other parts, or all are 0."""
    parts = [int(part) for part in split.split(":")] if well_formed(split) else []
    return parts if len(parts) == len(_weighted(experiment)) and any(parts) else []


def _weighted(experiment: Experiment) -> list[Arm]:
    return [arm for arm in experiment.arms if arm.end > arm.first]


def _reduced(sizes: list[int]) -> str:
    divisor = math.gcd(*sizes)
    return ":".join(str(size // divisor) for size in sizes) if divisor else ""
