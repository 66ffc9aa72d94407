"""The contract of a feature store: packed rows by (group, entity), read and guarded writes.

`lmdb://` and `redis://` implement it (`feature_store/connect.py` chooses by URL); the contract
suite `tests/contract/test_feature_store.py` says what every backend must hold. A store moves bytes:
what the bytes mean is the codec's affair, and what a missing row means the reader's.

Not guaranteed: reads of several rows are not a snapshot (a writer may be between two of them);
backends drop expired rows when they like, so a reader must judge the age itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class FeatureStoreUnavailable(Exception):
    """The store did not answer (refused, timed out, broken); the message says what to check."""


class FeatureStoreUnfit(FeatureStoreUnavailable):
    """The store will not do what was asked of it, however long one waits: it is too old or
    damaged, or forbids it. The message says what to change."""


class RowKey(NamedTuple):
    """One row: the feature group's name and the entity's id (1..256 bytes of UTF-8)."""

    group: str
    entity_id: str


@dataclass(frozen=True)
class GuardedWrite:
    """Rows of one entity to be written together, if nobody else wrote meanwhile.

    `rows` maps group name to encoded row, all of the same entity. The write is applied, whole, iff
    the stored row of `guard_group` has version `expected_version` (0: no such row); every row of
    the write must carry version `expected_version + 1` (see codec.encode).
    """

    entity_id: str
    guard_group: str
    expected_version: int
    rows: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if self.guard_group not in self.rows:
            raise ValueError(f"the write must replace its guard row {self.guard_group!r}")


class FeatureStore(Protocol):
    """Rows by key. Every method raises FeatureStoreUnavailable when the backend cannot answer."""

    def read(self, keys: Sequence[RowKey]) -> list[bytes | None]:
        """The rows in the order of `keys` in one round trip; None where there is none. Blocking."""

    async def read_async(self, keys: Sequence[RowKey], timeout_s: float) -> list[bytes | None]:
        """As `read`, without blocking the event loop: for the request path.

        Raises FeatureStoreUnavailable when the answer has not come after `timeout_s`; a backend
        that never waits (LMDB) needs no limit.
        """

    def write(self, writes: Sequence[GuardedWrite]) -> list[bool]:
        """Apply each write if its guard holds; True per applied one. Durable when it returns
        (LMDB) or acknowledged by the server (Redis). One write never undoes another."""

    def sweep(self, now_ms: int) -> int:
        """Delete rows past their group's TTL where the backend does not by itself; how many."""

    def clear(self, groups: Collection[str]) -> int:
        """Delete every row of these feature groups; how many. Nobody may write them meanwhile.
        What else the backend holds stays. Not atomic: broken off, it has deleted some."""

    def close(self) -> None: ...

    async def close_async(self) -> None: ...
