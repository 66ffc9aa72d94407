"""Item counters beside the item table: refreshed in the background, never read during a request.

At start every item's counters are read; afterwards, every `refresh_s`, those of the items that
were scored since and a rotating share of the others, so that none is older than `max_age_s` and
those in use are about one refresh old. The feature store's latency never meets a request. When no
refresh has succeeded for `max_age_s` the declared defaults (zeros) are used and the answers say so.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import structlog
from prometheus_client import Counter

from feature_store.codec import RowStatus
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, RowKey
from feature_store.reader import serve_many
from models.catalogue import ItemTable
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
    """The counts that a model reads per row of one item table, decayed to the last refresh."""

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
        self._max_age_s = max_age_s
        # Half the limit for one round leaves room for refreshes that fail or are late.
        self._share = math.ceil(len(items) * 2 * refresh_s / max_age_s)
        self._next_row = 1
        self._clock = clock
        self._touched = np.ones(len(items) + 1, bool)
        self._touched[0] = False
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

    def refresh(self) -> None:
        """Read the counters of every touched item and of the next share of the others.

        Raises FeatureStoreUnavailable."""
        if len(self._items):
            turn = 1 + (self._next_row - 1 + np.arange(self._share)) % len(self._items)
            self._touched[turn] = True
            self._next_row = int(turn[-1]) % len(self._items) + 1
        self._touched[0] = False
        rows = np.flatnonzero(self._touched)
        now_ms = int(self._clock() * 1000)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            read = self._store.read([RowKey(self._group.name, self._items.ids[r]) for r in chunk])
            served = serve_many(self._group, read, now_ms)
            found = np.bincount(served.status, minlength=len(RowStatus)).tolist()
            for status, count in zip(RowStatus, found, strict=True):
                _ROWS[status].inc(count)
            self._values[chunk] = self._fold.counters_at(served.records, now_ms, self._columns)
            self._touched[chunk] = False
        self._refreshed_at = self._clock()

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
