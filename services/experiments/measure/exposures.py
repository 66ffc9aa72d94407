"""Who was exposed to an experiment, by which decisions, and the feedback on them (`measure`).

OTHER TREATMENTS. A unit first exposed by another fingerprint than that of the declaration (the
arms' parameters were edited under the same salt, or a router still has another file) is left out
for good, as are those of another salt: it had another treatment first, and would carry that over
into the present one. A unit first exposed by this fingerprint counts, with all its decisions, also
when it meets another one later (intention to treat, as with arms). Both are counted and said. To
leave out those who meet another one would be to choose by who comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.experiments.declare.config import SESSION, USER, Experiment
from services.experiments.declare.fingerprints import fingerprint_of
from services.experiments.declare.metrics import Events
from services.experiments.declare.splits import known_split
from services.experiments.measure.fold import NO_UNIT, OVERRIDDEN, RecordedExposure, Settled
from services.experiments.measure.results import ArmCounts
from services.experiments.measure.sorted_rows import rows_of

Numbers: TypeAlias = NDArray[np.int64]

FOREVER = np.iinfo(np.int64).max


class Turns(NamedTuple):
    """The stretches of time in which one split was in force, ascending: as the records say, which
    while routers take up an edit one after the other may go back and forth."""

    start_ms: Numbers  # (t,) the first record of each
    split: Numbers  # (t,)


@dataclass(frozen=True, kw_only=True)
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
    splits: tuple[str, ...]  # ascending: that were in force; one at least
    split: Numbers | None  # (u,) index into splits, of the first decision; None: there is but one
    changed_ms: Numbers | None  # (u,) when the split next changed, or FOREVER; None: as before
    backlog: int  # units that are left out: they came before the split was changed
    since_ms: Mapping[str, float]  # the first exposure by each split
    edited: int = 0  # units that are left out: what the arms set was other at their first exposure
    mixed: int = 0  # units that count, and met other parameters of the arms later
    elsewhere_ms: float = 0.0  # of the last exposure by other parameters; 0: there was none
    events: Events  # of the domain

    @staticmethod
    def of(settled: Settled, experiment: Experiment, as_of_ms: float) -> Exposed:
        """As it is known at an instant: by decisions up to then."""
        exposures = {
            key: exposure
            for key, combination in settled.combinations.items()
            for exposure in combination
            if exposure.experiment == experiment.name
            and exposure.salt in ("", experiment.salt)  # another one's units were dealt otherwise
        }
        keys = np.array(sorted(exposures), np.int64)
        by_key = [exposures[key] for key in keys.tolist()]
        names = sorted({exposure.arm for exposure in by_key})
        arm_of = np.array([names.index(exposure.arm) for exposure in by_key], np.int64)
        recorded = [_split(exposure.split, experiment) for exposure in by_key]
        splits = tuple(sorted({*recorded} or {_split("", experiment)}))
        split_of = np.array([splits.index(split) for split in recorded], np.int64)

        key = rows_of(settled.decisions["arms"], keys)
        time_ms = settled.decisions["time_ms"]
        ids = _ids(settled, experiment.unit)
        rows = np.flatnonzero(
            (key >= 0)
            & (time_ms >= experiment.start_ms)
            & (time_ms < experiment.stop_ms)
            & (time_ms <= as_of_ms)
            & (ids != NO_UNIT)
        )
        key = key[rows]
        turns = _turns(time_ms[rows], split_of[key]) if len(splits) > 1 else None
        # Without an arm of its own (`fold.OVERRIDDEN`).
        own = arm_of[key] != (names.index(OVERRIDDEN) if OVERRIDDEN in names else -1)
        barred, overridden = np.zeros(len(rows), bool), 0
        if not experiment.interleave:  # there nobody has to match anybody
            barred, overridden = _overridden_before(ids[rows], time_ms[rows], own)
        kept = own & ~barred
        found = _Decisions.of(rows[kept], key[kept], time_ms[rows[kept]], ids[rows[kept]])

        edited, mixed, elsewhere_ms = 0, 0, 0.0
        other = np.flatnonzero(_by_other_treatment(by_key, experiment)[found.key])
        if len(other):
            elsewhere_ms = float(found.time_ms[other].max())
            met = found.units_of(other)
            late = np.isin(found.first, other)
            edited, mixed = int(late.sum()), int((met & ~late).sum())
            found = found.without(late)
        backlog, changed_ms = 0, None
        if turns is not None and len(turns.start_ms):
            first_split = split_of[found.key[found.first]]
            turn = _turn_of(turns, found.time_ms[found.first], first_split, len(splits))
            late = _seen_before(settled, ids, found.hashes, turns.start_ms, turn, as_of_ms)
            backlog, turn = int(late.sum()), turn[~late]
            found = found.without(late)
            changed_ms = np.append(turns.start_ms, FOREVER)[turn + 1]
        split, arm = split_of[found.key], arm_of[found.key]
        crossing = found.units_of(arm != arm[found.first][found.unit])
        by_split = {name: found.time_ms[split == i] for i, name in enumerate(splits)}
        since_ms = {name: float(own_ms.min()) for name, own_ms in by_split.items() if len(own_ms)}
        return Exposed(
            settled=settled, rows=found.rows, time_ms=found.time_ms, unit=found.unit,
            hashes=found.hashes, first=found.first, arm=arm[found.first], names=names,
            crossed=int(crossing.sum()), overridden=overridden, splits=splits,
            split=split[found.first] if len(splits) > 1 else None, changed_ms=changed_ms,
            backlog=backlog, since_ms=since_ms, edited=edited, mixed=mixed,
            elsewhere_ms=elsewhere_ms, events=experiment.events,
        )  # fmt: skip

    def column(self, name: str, of: Numbers | slice = slice(None)) -> NDArray[Any]:
        """A field of the decisions (of some of `rows`)."""
        return np.asarray(self.settled.decisions[name][self.rows[of]])


class _Decisions(NamedTuple):
    """Decisions (n,) and the units (u,) that they expose."""

    rows: Numbers  # (n,) of settled.decisions, ascending
    key: Numbers  # (n,) index into the combinations with the experiment
    time_ms: Numbers  # (n,)
    hashes: Numbers  # (u,)
    unit: Numbers  # (n,)
    first: Numbers  # (u,) index into rows

    @staticmethod
    def of(rows: Numbers, key: Numbers, time_ms: Numbers, ids: Numbers) -> _Decisions:
        """`ids` (n,) are the hashes of their units."""
        hashes, unit = np.unique(ids, return_inverse=True)
        first_ms = np.full(len(hashes), FOREVER)
        np.minimum.at(first_ms, unit, time_ms)
        # Of several in the first millisecond that of the least request hash.
        candidates = np.flatnonzero(time_ms == first_ms[unit])
        first = np.full(len(hashes), len(ids))
        np.minimum.at(first, unit[candidates], candidates)
        return _Decisions(rows, key, time_ms, hashes, unit, first)

    def without(self, units: NDArray[np.bool_]) -> _Decisions:
        """Those of the other units; `units` (u,) says which go."""
        stays = ~units[self.unit]
        ids = self.hashes[self.unit[stays]]
        return _Decisions.of(self.rows[stays], self.key[stays], self.time_ms[stays], ids)

    def units_of(self, chosen: Numbers | NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which units (u,) have any of these decisions."""
        found = np.zeros(len(self.hashes), bool)
        found[self.unit[chosen]] = True
        return found


def _by_other_treatment(
    exposures: Sequence[RecordedExposure], experiment: Experiment
) -> NDArray[np.bool_]:
    """By which exposures (n,) the experiment's arms set other than the declaration says, as far as
    is known: where one does, nobody can tell of those that say nothing (`fingerprints`)."""
    own = fingerprint_of(experiment)
    edited = any(exposure.fingerprint not in ("", own) for exposure in exposures)
    return np.array([edited and exposure.fingerprint != own for exposure in exposures], bool)


def _split(recorded: str, experiment: Experiment) -> str:
    return "" if experiment.interleave else known_split(recorded, experiment)


def _turns(time_ms: Numbers, split: Numbers) -> Turns:
    """From the records of an experiment."""
    order = np.lexsort((split, time_ms))
    begins = order[np.flatnonzero(np.diff(split[order], prepend=-1))]
    return Turns(time_ms[begins], split[begins])


def _turn_of(turns: Turns, time_ms: Numbers, split: Numbers, splits: int) -> Numbers:
    """The turn that each record is in, one of `splits` different ones being in force in each."""
    begins = turns.start_ms * splits + turns.split
    found = np.searchsorted(begins, time_ms * splits + split, "right") - 1
    return np.asarray(np.maximum(found, 0), np.int64)


def _seen_before(
    settled: Settled,
    ids: Numbers,
    hashes: Numbers,
    start_ms: Numbers,
    turn: Numbers,
    as_of_ms: float,
) -> NDArray[np.bool_]:
    """Whether each unit, first exposed in a turn, had a record of any kind between the first turn's
    beginning and its own's.

    An arm that is grown alone gets at once the users who came before and were not let in: the
    other arms' like them were exposed when they came. It is as with an arm that is resumed.
    """
    found = np.zeros(len(hashes), bool)
    later = np.flatnonzero(turn > 0)
    if not len(later):
        return found
    all_ms = settled.decisions["time_ms"]
    seen = np.flatnonzero((all_ms >= start_ms[0]) & (all_ms <= as_of_ms) & (ids != NO_UNIT))
    unit = rows_of(ids[seen], hashes[later])
    seen_ms = np.full(len(later), FOREVER)
    np.minimum.at(seen_ms, unit[unit >= 0], all_ms[seen[unit >= 0]])
    found[later] = seen_ms < start_ms[turn[later]]
    return found


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
    exposed_ms, overridden_ms = np.full(len(met), FOREVER), np.full(len(met), FOREVER)
    np.minimum.at(exposed_ms, unit[exposing], time_ms[of_met[exposing]])
    np.minimum.at(overridden_ms, unit[~exposing], time_ms[of_met[~exposing]])
    before = overridden_ms <= exposed_ms
    found[of_met] = before[unit]
    return found, int((before & (exposed_ms < FOREVER)).sum())


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
class JoinedFeedback:
    """The feedback on decisions that expose and were answered."""

    events: Numbers  # (m,) rows of settled.events
    of: Numbers  # (m,) index into Exposed.rows
    after_ms: Numbers  # (m,) after the decision
    types: NDArray[np.uint8]  # (m,) ids of the events

    @staticmethod
    def on(exposed: Exposed) -> JoinedFeedback:
        settled = exposed.settled
        place = np.full(len(settled.decisions) + 1, -1, np.int64)  # the last: of no decision
        answered = np.flatnonzero(~exposed.column("unanswered"))
        place[exposed.rows[answered]] = answered
        of = place[settled.decision_of]
        events = np.flatnonzero(of >= 0)
        of = of[events]
        after_ms = settled.events["time_ms"][events] - exposed.time_ms[of]
        return JoinedFeedback(events, of, after_ms, settled.events["type"][events])


def arm_counts(exposed: Exposed, feedback: JoinedFeedback) -> dict[str, ArmCounts]:
    """What each arm was shown to and what came of it, whenever it came.

    The statistics are of part of that: of units that were observed long enough, for as long.
    """

    def per_arm(arms: Numbers) -> list[int]:
        found: list[int] = np.bincount(arms, minlength=len(exposed.names)).tolist()
        return found

    arm = exposed.arm[exposed.unit]
    of_event = arm[feedback.of]
    units = per_arm(exposed.arm)
    requests = per_arm(arm[~exposed.column("unanswered")])
    degraded = per_arm(arm[exposed.column("degraded")])
    events = {e.name: per_arm(of_event[feedback.types == e.id]) for e in exposed.events.declared}
    return {
        name: ArmCounts(
            units[i], requests[i], degraded[i], {event: of[i] for event, of in events.items()}
        )
        for i, name in enumerate(exposed.names)
        if units[i]
    }
