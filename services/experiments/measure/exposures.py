"""Who was exposed to an experiment, by which decisions, and the feedback on them (`measure`).

OTHER TREATMENTS. A unit first exposed by another fingerprint than that of the declaration (the
arms' parameters were edited under the same salt, or a router still has another file) is left out
for good, as are those of another salt: it had another treatment first, and would carry that over
into the present one. A unit first exposed by this fingerprint counts, with all its decisions, also
when it meets another one later (intention to treat, as with arms). Both are counted and said. To
leave out those who meet another one would be to choose by who comes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protos.tandem.v1.records_pb2 import CLICK, IMPRESSION, LIKE
from services.experiments.declare.config import SESSION, USER, Experiment
from services.experiments.declare.fingerprints import fingerprint_of
from services.experiments.declare.splits import known_split
from services.experiments.measure.fold import NO_UNIT, OVERRIDDEN, Exposure, Settled, rows_of

Numbers: TypeAlias = NDArray[np.int64]


FOREVER = np.iinfo(np.int64).max


class Turns(NamedTuple):
    """The stretches of time in which one split was in force, ascending: as the records say, which
    while routers take up an edit one after the other may go back and forth."""

    start_ms: Numbers  # (t,) the first record of each
    split: tuple[str, ...]  # (t,) as `splits.known_split`


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
    splits: tuple[str, ...]  # ascending: that were in force; one at least
    split: Numbers | None  # (u,) index into splits, of the first decision; None: there is but one
    changed_ms: Numbers | None  # (u,) when the split next changed, or FOREVER; None: as before
    backlog: int  # units that are left out: they came before the split was changed
    since_ms: Mapping[str, float]  # the first exposure by each split
    turns: Turns | None  # None: there is but one split
    edited: int = 0  # units that are left out: what the arms set was other at their first exposure
    mixed: int = 0  # units that count, and met other parameters of the arms later
    elsewhere_ms: float = 0.0  # of the last exposure by other parameters; 0: there was none

    @staticmethod
    def of(
        settled: Settled, experiment: Experiment, as_of_ms: float, turns: Turns | None = None
    ) -> Exposed:
        """As it is known at an instant: by decisions up to then. `turns`: of the whole log, where
        the set is a shard of it; without them those that the set itself shows."""
        exposures = {
            key: exposure
            for key, combination in settled.combinations.items()
            for exposure in combination
            if exposure.experiment == experiment.name
            and exposure.salt in ("", experiment.salt)  # another one's units were dealt otherwise
        }
        own_of = {
            key: (exposure.arm, _split(exposure.split, experiment))
            for key, exposure in exposures.items()
        }
        names = sorted({arm for arm, _ in own_of.values()})
        keys = np.array(sorted(own_of), np.int64)
        numbers = np.array([names.index(own_of[key][0]) for key in keys.tolist()], np.int64)
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
        found = {split for _, split in own_of.values()} | set(turns.split if turns else ())
        splits = tuple(sorted(found)) or (_split("", experiment),)
        split = None  # (n,) index into splits
        if len(splits) > 1:
            split = np.array([splits.index(own_of[key][1]) for key in keys.tolist()], np.int64)
            split = split[place[rows]]
            turns = turns or _turns(time_ms[rows], split, splits)
        # Without an arm of its own (`fold.OVERRIDDEN`).
        own = arms != (names.index(OVERRIDDEN) if OVERRIDDEN in names else -1)
        barred, overridden = np.zeros(len(rows), bool), 0
        if not experiment.interleave:  # there nobody has to match anybody
            barred, overridden = _overridden_before(ids[rows], time_ms[rows], own)
        kept = own & ~barred
        rows, arms = rows[kept], arms[kept]
        own_ms = time_ms[rows]
        hashes, unit, first = _units(ids[rows], own_ms)
        edited, mixed, elsewhere_ms = 0, 0, 0.0
        combinations = settled.decisions["arms"][rows]
        other = np.flatnonzero(np.isin(combinations, _other_treatments(exposures, experiment)))
        if len(other):
            elsewhere_ms = float(own_ms[other].max())
            met = np.zeros(len(hashes), bool)
            met[unit[other]] = True
            late = np.isin(first, other)
            edited, mixed = int(late.sum()), int((met & ~late).sum())
            stays = ~late[unit]
            kept[kept] = stays
            rows, arms, own_ms = rows[stays], arms[stays], own_ms[stays]
            hashes, unit, first = _units(ids[rows], own_ms)
        backlog, changed_ms = 0, None
        if split is not None and turns is not None and len(turns.start_ms):
            split = split[kept]
            turn = _turn_of(turns, own_ms[first], split[first], splits)
            late = _seen_before(settled, ids, hashes, turns.start_ms, turn, as_of_ms)
            stays = ~late[unit]
            backlog, turn = int(late.sum()), turn[~late]
            rows, arms, own_ms, split = rows[stays], arms[stays], own_ms[stays], split[stays]
            hashes, unit, first = _units(ids[rows], own_ms)
            changed_ms = np.append(turns.start_ms, FOREVER)[turn + 1]
        since_ms = {}
        if split is not None:
            for i in np.unique(split).tolist():
                since_ms[splits[i]] = float(own_ms[split == i].min())
            split = split[first]
        elif len(rows):
            since_ms = {splits[0]: float(own_ms.min())}
        arm = arms[first]
        met_another = np.zeros(len(hashes), bool)
        met_another[unit[arms != arm[unit]]] = True
        return Exposed(
            settled, rows, own_ms, unit, hashes, first, arm, names, int(met_another.sum()),
            overridden, splits, split, changed_ms, backlog, since_ms, turns, edited, mixed,
            elsewhere_ms,
        )  # fmt: skip

    def column(self, name: str, of: Numbers | slice = slice(None)) -> NDArray[Any]:
        """A field of the decisions (of some of `rows`)."""
        return np.asarray(self.settled.decisions[name][self.rows[of]])


def _other_treatments(exposures: Mapping[int, Exposure], experiment: Experiment) -> list[int]:
    """The combinations by which the experiment's arms set other than the declaration says, as far
    as is known: where one does, nobody can tell of those that say nothing (`fingerprints`)."""
    own = fingerprint_of(experiment)
    if all(exposure.fingerprint in ("", own) for exposure in exposures.values()):
        return []
    return [key for key, exposure in exposures.items() if exposure.fingerprint != own]


def _split(recorded: str, experiment: Experiment) -> str:
    return "" if experiment.interleave else known_split(recorded, experiment)


def _units(ids: Numbers, time_ms: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Of decisions: the units (u,), each decision's (n,), and each unit's first decision (u,)."""
    hashes, unit = np.unique(ids, return_inverse=True)
    first_ms = np.full(len(hashes), FOREVER)
    np.minimum.at(first_ms, unit, time_ms)
    # Of several in the first millisecond that of the least request hash.
    candidates = np.flatnonzero(time_ms == first_ms[unit])
    first = np.full(len(hashes), len(ids))
    np.minimum.at(first, unit[candidates], candidates)
    return hashes, unit, first


def _turns(time_ms: Numbers, split: Numbers, splits: Sequence[str]) -> Turns:
    """From the records of an experiment."""
    order = np.lexsort((split, time_ms))
    begins = np.flatnonzero(np.diff(split[order], prepend=-1))
    begins = order[begins]
    return Turns(time_ms[begins], tuple(splits[i] for i in split[begins].tolist()))


def _turn_of(turns: Turns, time_ms: Numbers, split: Numbers, splits: Sequence[str]) -> Numbers:
    """The turn that each record is in."""
    begins = turns.start_ms * len(splits) + [splits.index(name) for name in turns.split]
    found = np.searchsorted(begins, time_ms * len(splits) + split, "right") - 1
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


_EVENTS = {"impressions": IMPRESSION, "clicks": CLICK, "likes": LIKE}
ARM_COUNTS = ("units", "requests", "degraded", *_EVENTS)


def arm_counts(exposed: Exposed, feedback: Feedback) -> dict[str, Counter[str]]:
    """What each arm was shown to and what came of it, whenever it came: ARM_COUNTS of the exposed
    units, their answers, those of the answers that were degraded, and the feedback on them.

    The statistics are of part of that: of units that were observed long enough, for as long.
    """

    def per_arm(arms: Numbers) -> list[int]:
        found: list[int] = np.bincount(arms, minlength=len(exposed.names)).tolist()
        return found

    arm = exposed.arm[exposed.unit]
    of_event = arm[feedback.of]
    columns = (
        per_arm(exposed.arm),
        per_arm(arm[~exposed.column("unanswered")]),
        per_arm(arm[exposed.column("degraded")]),
        *(per_arm(of_event[feedback.types == kind]) for kind in _EVENTS.values()),
    )
    return {
        name: +Counter(dict(zip(ARM_COUNTS, counts, strict=True)))
        for name, *counts in zip(exposed.names, *columns, strict=True)
        if counts[0]
    }
