"""Who was exposed to an experiment, by which decisions, and the feedback on them (`measure`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.experiments.config import SESSION, USER, Experiment
from services.experiments.fold import NO_UNIT, Settled, rows_of

Numbers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Exposed:
    """The decisions that expose units to an experiment, and the units, numbered by their hash."""

    settled: Settled
    rows: Numbers  # (n,) of settled.decisions, ascending
    time_ms: Numbers  # (n,)
    unit: Numbers  # (n,) number of the decision's unit
    hashes: Numbers  # (u,) of the bare ids: no assignment hashes without a salt
    first: Numbers  # (u,) index into rows of the first decision
    arm: Numbers  # (u,) index into names
    names: list[str]
    crossed: int

    @staticmethod
    def of(settled: Settled, experiment: Experiment) -> Exposed:
        arm_of = {
            key: exposure.arm
            for key, combination in settled.combinations.items()
            for exposure in combination
            if exposure.experiment == experiment.name
            and exposure.salt in ("", experiment.salt)  # another one's units were dealt otherwise
        }
        names = sorted(set(arm_of.values()))
        keys = np.array(sorted(arm_of), np.int64)
        numbers = np.array([names.index(arm_of[key]) for key in keys.tolist()], np.int64)
        place = rows_of(settled.decisions["arms"], keys)
        time_ms = settled.decisions["time_ms"]
        ids = _ids(settled, experiment.unit)
        rows = np.flatnonzero(
            (place >= 0)
            & (time_ms >= experiment.start_ms)
            & (time_ms < experiment.stop_ms)
            & (ids != NO_UNIT)
        )
        time_ms = time_ms[rows]
        hashes, unit = np.unique(ids[rows], return_inverse=True)
        first_ms = np.full(len(hashes), np.iinfo(np.int64).max)
        np.minimum.at(first_ms, unit, time_ms)
        # Of several in the first millisecond that of the least request hash.
        candidates = np.flatnonzero(time_ms == first_ms[unit])
        first = np.full(len(hashes), len(rows))
        np.minimum.at(first, unit[candidates], candidates)
        arms = numbers[place[rows]] if len(keys) else np.empty(0, np.int64)
        arm = arms[first]
        met_another = np.zeros(len(hashes), bool)
        met_another[unit[arms != arm[unit]]] = True
        return Exposed(
            settled, rows, time_ms, unit, hashes, first, arm, names, int(met_another.sum())
        )

    def column(self, name: str, of: Numbers | slice = slice(None)) -> NDArray[Any]:
        """A field of the decisions (of some of `rows`)."""
        return np.asarray(self.settled.decisions[name][self.rows[of]])


def _ids(settled: Settled, kind: str) -> Numbers:
    """The hash of each decision's unit of a kind, or NO_UNIT."""
    decisions = settled.decisions
    if kind in (USER, SESSION):
        return np.asarray(decisions[kind])
    found = np.full(len(decisions), NO_UNIT, np.int64)
    if (units := settled.units.get(kind)) is not None:
        rows = rows_of(units["request"], decisions["request"])
        found[rows[rows >= 0]] = units["unit"][rows >= 0]
    return found


@dataclass(frozen=True)
class Feedback:
    """The feedback on decisions that expose and were answered."""

    events: Numbers  # (m,) rows of settled.events
    of: Numbers  # (m,) index into Exposed.rows
    after_ms: Numbers  # (m,) after the decision
    types: NDArray[np.int8]  # (m,)

    @staticmethod
    def on(exposed: Exposed) -> Feedback:
        settled = exposed.settled
        place = np.full(len(settled.decisions) + 1, -1, np.int64)  # the last: of no decision
        answered = np.flatnonzero(~exposed.column("unanswered"))
        place[exposed.rows[answered]] = answered
        of = place[settled.decision_of]
        events = np.flatnonzero(of >= 0)
        of = of[events]
        after_ms = settled.events["time_ms"][events] - exposed.time_ms[of]
        return Feedback(events, of, after_ms, settled.events["type"][events])
