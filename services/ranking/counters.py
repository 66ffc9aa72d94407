"""Item counters by rows of the catalogue: refreshed in the background, never read for a request.

At start every item's counters are read; afterwards, every `refresh_s`, those of the items that
were scored since and a rotating share of the others, so that none is older than `max_age_s` and
those in use are about one refresh old. The feature store's latency never meets a request. When no
refresh has succeeded for `max_age_s` the declared defaults (zeros) are used and the answers say so.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import structlog
from prometheus_client import Counter

from feature_store.codec import RowStatus
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, RowKey
from feature_store.reader import serve_many
from models.catalogue import ItemTable
from models.rows import changed_rows
from models.schema.compiled import Schema
from services.common.telemetry import OwnedGauge

log = structlog.get_logger()

AGE = OwnedGauge(
    "tandem_ranking_counters_age_seconds",
    "Age of the item counters in use; past the limit ranking falls back to defaults.",
)

ROWS = Counter(
    "tandem_ranking_counter_rows_total",
    "Item counter rows read by what was found; all but fresh are used as declared defaults: many"
    " missing are normal for items without recent events, schema_mismatch follows a schema change.",
    ["status"],
)
_ROWS = {status: ROWS.labels(status.name.lower()) for status in RowStatus}

CHUNK = 512  # rows per read: about 1 ms of Redis


class ItemCounters:
    """The counts that a model reads per row of one item table, decayed to the last refresh.

    One thread takes and follows, another one refreshes."""

    def __init__(
        self,
        schema: Schema,
        store: FeatureStore,
        items: ItemTable,
        columns: Sequence[str],
        *,
        refresh_s: float,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fold, self._group = schema.fold, schema.layout.counters
        self._store = store
        self._items, self._columns = items, columns
        self._refresh_s, self._max_age_s = refresh_s, max_age_s
        self._next_row = 1
        self._clock = clock
        self._lock = threading.Lock()  # of all that a refresh writes while rows may be added
        self._touched = np.ones(len(items) + 1, bool)
        self._values = np.zeros((len(items) + 1, len(columns)), np.float32)
        self._refreshed_at = 0.0

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, bool]:
        """float32[len(rows), C], the counts of items that the model reads, and whether they are
        fresh; remembers the rows for the refresh."""
        self._touched[rows] = True
        fresh = self._clock() - self._refreshed_at <= self._max_age_s
        if fresh:
            return self._values[rows], True
        return np.zeros((len(rows), len(self._columns)), np.float32), False

    def follow(self, items: ItemTable) -> None:
        """Go on with a later state of the table: the next refresh reads what is new in it."""
        rows, count = changed_rows(self._items, items), len(items) + 1
        with self._lock:
            if rows is None and items.fingerprint != self._items.fingerprint:  # other rows
                self._touched, self._values = self._touched[:0], self._values[:0]
            if count > len(self._touched):
                self._touched = _longer(self._touched, 2 * count)
                self._values = _longer(self._values, 2 * count)
            self._touched[slice(count) if rows is None else rows] = True
            self._items = items

    def refresh(self) -> None:
        """Read the counters of every touched item and of the next share of the others.

        Raises FeatureStoreUnavailable."""
        with self._lock:
            items = self._items
            rows = self._due(items)
        now_ms = int(self._clock() * 1000)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            read = self._store.read([RowKey(self._group.name, items.ids[r]) for r in chunk])
            served = serve_many(self._group, read, now_ms)
            found = np.bincount(served.status, minlength=len(RowStatus)).tolist()
            for status, count in zip(RowStatus, found, strict=True):
                _ROWS[status].inc(count)
            values = self._fold.counters_at(served.records, now_ms, self._columns)
            with self._lock:
                if items.fingerprint != self._items.fingerprint:
                    return  # they are other items' rows by now
                self._values[chunk] = values
                self._touched[chunk] = False
        self._refreshed_at = self._clock()

    def _due(self, items: ItemTable) -> np.ndarray:
        """int64: the rows to read now. Nobody reads those of items that have been removed."""
        if n := len(items):
            # Half the limit for one round leaves room for refreshes that fail or are late.
            share = math.ceil(n * 2 * self._refresh_s / self._max_age_s)
            turn = 1 + (self._next_row - 1 + np.arange(share)) % n
            self._touched[turn] = True
            self._next_row = int(turn[-1]) % n + 1
        self._touched[0] = False
        rows = np.flatnonzero(self._touched)
        gone = items.removed[rows]
        self._touched[rows[gone]] = False
        return rows[~gone]

    async def refresh_after(self, wait_s: float) -> None:
        """Wait, then refresh off the event loop; a store that is down is logged and waited out."""
        await asyncio.sleep(wait_s)
        refreshing = asyncio.get_running_loop().run_in_executor(None, self.refresh)
        try:
            await asyncio.shield(refreshing)
        except asyncio.CancelledError:
            await asyncio.wait([refreshing])  # nobody may close the store under a running read
            raise
        except FeatureStoreUnavailable as error:
            log.warning("counters_stale", error=str(error))
        AGE.set(self._clock() - self._refreshed_at if self._refreshed_at else -1)


def _longer(values: np.ndarray, count: int) -> np.ndarray:
    """[count, ...]: `values`, then zeros."""
    longer = np.zeros((count, *values.shape[1:]), values.dtype)
    longer[: len(values)] = values
    return longer
