"""However a history lies in imported tables and in the log, rows are made of each event once."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.interface import RowKey
from models.catalogue import ItemTable, item_key
from models.data.backfill import FeatureState, Interaction, values_by_key
from models.data.own.tables import OwnTables
from models.data.worlds.recipes import example
from models.schema import compiled
from models.schema.fold import UserState
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.common.settings import Settings
from services.event_log.connect import connect
from services.feedback.rebuild import Rebuilt, rebuild
from services.feedback.store_log import open_store
from tests.integration.updating import append
from tests.served import serve_one

FILE = Path(example.__file__).parent / "schema.yaml"
SCHEMA = compiled.load(FILE)
START_MS = time.time_ns() // 1_000_000 - 86_400_000
MINUTE_MS = 60_000
KINDS = {"shown": 1, "open": 2, "cook": 3}


class Happened(NamedTuple):
    """One event; times are minutes, each of another one."""

    user: str
    item: str
    event: str
    minute: int

    @property
    def time_ms(self) -> int:
        return START_MS + self.minute * MINUTE_MS

    @property
    def value(self) -> float | None:
        return float(1 + self.minute % 5) if self.event == "cook" else None


def items() -> ItemTable:
    features = np.zeros(3, SCHEMA.layout.item.dtype)
    features["cuisine"][:, 0] = (1, 2, 2)
    return ItemTable.build(["i0", "i1", "i2"], features)


@st.composite
def histories(draw: st.DrawFn) -> list[Happened]:
    """In the order of time; one item is in no table."""
    kinds = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["u", "v"]),
                st.sampled_from(["i0", "i1", "i2", "unknown"]),
                st.sampled_from(list(KINDS)),
            ),
            max_size=25,
        )
    )
    return [Happened(*kind, minute) for minute, kind in enumerate(kinds)]


def whole(history: Sequence[Happened]) -> FeatureState:
    """The rows of a system that saw it all."""
    state, values = FeatureState(SCHEMA.fold), values_by_key(items(), SCHEMA.fold)
    for one in history:
        key = item_key(one.item)
        happened = Interaction(
            one.user, one.item, key, one.time_ms, (KINDS[one.event],), (one.value or 0.0,)
        )
        state.apply(happened, values.get(key))
    return state


class Made(NamedTuple):
    done: Rebuilt
    users: dict[str, UserState]  # profile and history
    counters: dict[str, np.ndarray]


def own_tables(imported: Sequence[Happened]) -> OwnTables:
    columns = {
        "user_id": [one.user for one in imported],
        "item_id": [one.item for one in imported],
        "event": [one.event for one in imported],
        "time_ms": [one.time_ms for one in imported],
        "value": [one.value for one in imported],
    }
    types = {"time_ms": pl.Int64, "value": pl.Float64}
    events = pl.LazyFrame(columns, {name: types.get(name, pl.String) for name in columns})
    return OwnTables(SCHEMA, events, pl.LazyFrame(), pl.LazyFrame({"user_id": []}))


def records(logged: Sequence[Happened]) -> Iterator[FeedbackEvent]:
    for one in logged:
        yield FeedbackEvent(
            event_id=f"e{one.minute}",
            user_id=one.user,
            item_id=one.item,
            event_type=KINDS[one.event],  # type: ignore[arg-type]
            event_time_ms=one.time_ms,
            value=one.value or 0.0,
        )


def made(imported: Sequence[Happened], logged: Sequence[Happened]) -> Made:
    """What a rebuild makes of the two on a real store and log."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        own = Settings(
            run_dir=folder,  # type: ignore[arg-type]
            schema_file=FILE,
            feature_store={"url": f"lmdb://{folder}/features", "lmdb_map_size_mb": 64},  # type: ignore[arg-type]
            event_log={"url": f"log://{folder}/events", "partitions": 2},  # type: ignore[arg-type]
        )
        log = opened.enter_context(contextlib.closing(connect(own.event_log, None)))
        store = opened.enter_context(contextlib.closing(open_store(own)))
        append(log, list(records(logged)))
        done = rebuild(own, store, log, items(), own=own_tables(imported))
        layout, now_ms = SCHEMA.layout, time.time_ns() // 1_000_000

        def read(group: str, entity: str) -> np.ndarray:
            (row,) = store.read([RowKey(group, entity)])
            return np.asarray(serve_one(getattr(layout, group), row, now_ms).record)

        blank = SCHEMA.fold.user_state()
        users = {
            user: UserState(
                read("profile", user), read("history", user), blank.delivery, blank.older
            )
            for user in ("u", "v")
        }
        return Made(done, users, {i: read("counters", i) for i in ("i0", "i1", "i2", "unknown")})


def same_counts(one: Made, other: FeatureState) -> None:
    """Counters of items are equal up to rounding, as other users' events come in between."""
    for item, found in one.counters.items():
        state = other.items.get(item_key(item)) or SCHEMA.fold.item_state()
        for name in SCHEMA.layout.counters.dtype.names or ():
            assert float(found[name]) == pytest.approx(float(state.counters[name]), rel=1e-9)


@settings(max_examples=15)
@given(histories(), st.integers(0, 25), st.integers(0, 25))
def test_two_cuts_of_a_history_make_the_rows_of_the_whole_history(
    history: list[Happened], one: int, other: int
) -> None:
    """The log begins at the first cut, the import ends at the second: between them both have it."""
    begins, ends = sorted(min(cut, len(history)) for cut in (one, other))
    found = made(history[:ends], history[begins:])
    wanted = whole(history)
    for user, state in found.users.items():
        known = wanted.users.get(user) or SCHEMA.fold.user_state()
        assert state.profile.tobytes() == known.profile.tobytes()
        assert state.history.tobytes() == known.history.tobytes()
    same_counts(found, wanted)
    both = ends - begins
    assert found.done.outcomes.get("applied", 0) == len(history) - begins
    assert any(f"{both} imported events are in the event log" in line for line in
               found.done.sentences) == (both > 0)  # fmt: skip


@settings(max_examples=15)
@given(st.data())
def test_any_two_parts_of_a_history_count_each_event_once(data: st.DataObject) -> None:
    """Whichever events are imported, logged, or both; in the parts' own order of time."""
    history = data.draw(histories())
    places = [data.draw(st.sampled_from(["imported", "logged", "both"])) for _ in history]
    parts = {
        name: [one for one, place in zip(history, places, strict=True) if place in (name, "both")]
        for name in ("imported", "logged")
    }
    found, wanted = made(**parts), whole(history)
    for user, state in found.users.items():
        known = wanted.users.get(user) or SCHEMA.fold.user_state()
        for name in SCHEMA.layout.profile.dtype.names or ():
            np.testing.assert_allclose(
                np.asarray(state.profile[name], float), np.asarray(known.profile[name], float),
                rtol=1e-5, atol=1e-9,
            )  # fmt: skip
        assert set(state.history["item_keys"].tolist()) == set(known.history["item_keys"].tolist())
    same_counts(found, wanted)


def test_a_gap_between_the_import_and_the_log_is_named_with_its_times() -> None:
    before, after = Happened("u", "i0", "open", 0), Happened("u", "i1", "open", 90)
    (said,) = made([before], [after]).done.sentences
    for moment in (before, after):
        assert time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment.time_ms // 1000)) in said
    assert "`tandem import events FILE`" in said
    assert made([before], []).done.sentences == made([], [after]).done.sentences == ()


def test_imported_events_that_the_log_could_have_are_counted_and_named() -> None:
    """One whose time was rounded on its way is another event: its owner must be told."""
    logged = [Happened("u", "i0", "open", 5), Happened("u", "i1", "open", 7)]
    found = made([Happened("u", "i0", "open", 4), Happened("u", "i0", "open", 6)], logged)
    (said,) = found.done.sentences
    assert said.startswith("1 imported events are as late as the event log's")
