"""Who was exposed to an experiment, by which decisions, and the feedback on them (`measure`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.experiments.config import SESSION, USER, Experiment
from services.experiments.fold import NO_UNIT, OVERRIDDEN, Settled, rows_of

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
    overridden: int  # units that are left out: they met the experiment overridden before

    @staticmethod
    def of(settled: Settled, experiment: Experiment, as_of_ms: float) -> Exposed:
        """As it is known at an instant: by decisions up to then."""
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
            & (time_ms <= as_of_ms)
            & (ids != NO_UNIT)
        )
        arms = numbers[place[rows]] if len(keys) else np.empty(0, np.int64)
        # Without an arm of its own (`fold.OVERRIDDEN`).
        own = arms != (names.index(OVERRIDDEN) if OVERRIDDEN in names else -1)
        barred, overridden = np.zeros(len(rows), bool), 0
        if not experiment.interleave:  # there nobody has to match anybody
            barred, overridden = _overridden_before(ids[rows], time_ms[rows], own)
        rows, arms = rows[own & ~barred], arms[own & ~barred]
        time_ms = time_ms[rows]
        hashes, unit = np.unique(ids[rows], return_inverse=True)
        first_ms = np.full(len(hashes), np.iinfo(np.int64).max)
        np.minimum.at(first_ms, unit, time_ms)
        # Of several in the first millisecond that of the least request hash.
        candidates = np.flatnonzero(time_ms == first_ms[unit])
        first = np.full(len(hashes), len(rows))
        np.minimum.at(first, unit[candidates], candidates)
        arm = arms[first]
        met_another = np.zeros(len(hashes), bool)
        met_another[unit[arms != arm[unit]]] = True
        return Exposed(
            settled, rows, time_ms, unit, hashes, first, arm, names,
            int(met_another.sum()), overridden,
        )  # fmt: skip

    def column(self, name: str, of: Numbers | slice = slice(None)) -> NDArray[Any]:
        """A field of the decisions (of some of `rows`)."""
        return np.asarray(self.settled.decisions[name][self.rows[of]])


def _overridden_before(
    ids: Numbers, time_ms: Numbers, own: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], int]:
    """Whether each decision's unit met the experiment overridden before it was exposed, or in the
    same millisecond; and how many of the units that were exposed did.

    While an arm is stopped its newcomers are overridden and the other arms' are exposed. If they
    counted once the arm is resumed, it would get a backlog of units that nobody else has.
    """
    found = np.zeros(len(ids), bool)
    met = np.unique(ids[~own])
    if not len(met):
        return found, 0
    place = rows_of(ids, met)
    of_met = np.flatnonzero(place >= 0)
    unit, exposing = place[of_met], own[of_met]
    never = np.iinfo(np.int64).max
    exposed_ms, overridden_ms = np.full(len(met), never), np.full(len(met), never)
    np.minimum.at(exposed_ms, unit[exposing], time_ms[of_met[exposing]])
    np.minimum.at(overridden_ms, unit[~exposing], time_ms[of_met[~exposing]])
    before = overridden_ms <= exposed_ms
    found[of_met] = before[unit]
    return found, int((before & (exposed_ms < never)).sum())


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
