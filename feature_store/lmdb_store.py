"""Features in LMDB: the embedded backend, one memory-mapped file shared by the local processes.

Any number of processes may open it; readers never wait for the writer. A `write()` is one write
transaction: the guards are compared inside it, it is fsynced when the call returns, and a process
killed within it leaves the rows as they were. Reads take microseconds: `read_async` simply reads.

Not guaranteed: a store opened before a fork must not be used in the child; expired rows keep their
place until `sweep()`. The last commit of a killed process may surface only with the next write, of
whichever process: LMDB looks for it when it takes over the dead one's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import lmdb

from feature_store.codec import event_time_of, expiry_ms, row_version
from feature_store.interface import FeatureStoreUnavailable, FeatureStoreUnfit, GuardedWrite, RowKey
from models.schema.groups import FeatureGroup

_MAX_READERS = 512
_MOST_UNWRITTEN = 2**20  # bytes at the end of a whole file that were never written
_DELETE_CHUNK = 1000  # rows per write transaction: writers get in between
_REBUILD = "move the folder away and run `tandem features rebuild`, which makes it from the log"


class LmdbFeatureStore:
    """A FeatureStore in the folder `path`; every process should name the same map size."""

    def __init__(self, path: Path, groups: Mapping[str, FeatureGroup], map_size_mb: int) -> None:
        """Open or create the folder. Raises FeatureStoreUnavailable when that fails."""
        self._path = path
        self._groups = groups
        self._env = _Environment.open(path, map_size_mb * 2**20)
        self._closed = False

    def read(self, keys: Sequence[RowKey]) -> list[bytes | None]:
        # `_transaction` in one frame: this is on the way of every request.
        if self._closed:
            raise self._was_closed()
        try:
            txn = self._env.begin(write=False)
            try:
                return [_get(txn, _key(*key)) for key in keys]
            finally:
                txn.abort()
                self._env.ended()
        except lmdb.Error as error:
            raise self._translated(error) from error

    async def read_async(self, keys: Sequence[RowKey], timeout_s: float) -> list[bytes | None]:
        return self.read(keys)

    def write(self, writes: Sequence[GuardedWrite]) -> list[bool]:
        try:
            return self._write(writes)
        except _Full:
            if not self._env.free_dead_readers():  # they pin pages that could be written again
                raise
            return self._write(writes)

    def _write(self, writes: Sequence[GuardedWrite]) -> list[bool]:
        with self._transaction(write=True) as txn:
            return [_apply(txn, write) for write in writes]

    def sweep(self, now_ms: int) -> int:
        """Delete rows past their group's TTL; rows of groups that the schema lacks are kept.

        Also frees what killed readers have pinned."""
        self._env.free_dead_readers()
        return self._delete(lambda key, row: self._expired(key, row, now_ms))

    def clear(self, groups: Collection[str]) -> int:
        return self._delete(lambda key, row: _group_of(key) in groups)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._env.release()

    async def close_async(self) -> None:
        self.close()

    def _expired(self, key: bytes, row: bytes, now_ms: int) -> bool:
        group = self._groups.get(_group_of(key))
        return group is not None and now_ms > expiry_ms(group, event_time_of(row))

    def _delete(self, unwanted: Callable[[bytes, bytes], bool]) -> int:
        """Delete the rows of which that holds; how many."""
        with self._transaction(write=False) as txn:
            keys = [key for key, row in _items(txn) if unwanted(key, row)]
        deleted = 0
        for start in range(0, len(keys), _DELETE_CHUNK):
            with self._transaction(write=True) as txn:
                for key in keys[start : start + _DELETE_CHUNK]:
                    row = _get(txn, key)  # may have been written anew since
                    if row is not None and unwanted(key, row):
                        deleted += txn.delete(key)
        return deleted

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[lmdb.Transaction]:
        if self._closed:
            raise self._was_closed()
        try:
            txn = self._env.begin(write=write)
            try:
                with txn:
                    yield txn
            finally:
                self._env.ended()
        except lmdb.Error as error:
            raise self._translated(error) from error

    def _was_closed(self) -> FeatureStoreUnavailable:
        return FeatureStoreUnavailable(f"the feature store {self._path} was closed")

    def _translated(self, error: lmdb.Error) -> FeatureStoreUnavailable:
        if isinstance(error, lmdb.MapFullError):
            return _Full(
                f"the feature store {self._path} is full: raise feature_store.lmdb_map_size_mb"
                " (and restart), or sweep expired rows"
            )
        if isinstance(error, _DAMAGE):
            return _damaged(self._path, str(error))
        return FeatureStoreUnavailable(
            f"the feature store {self._path} failed: {error}; check the disk and permissions"
        )


class _Full(FeatureStoreUnavailable):
    """The map has no room."""


_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError)


def _damaged(path: Path, cause: str) -> FeatureStoreUnfit:
    return FeatureStoreUnfit(f"the feature store {path} is damaged ({cause}): {_REBUILD}")


class _Environment:
    """The process's one lmdb environment of a folder: LMDB forbids to open a folder twice.

    Counts its transactions, because the map may only be adopted anew (after another process,
    with a larger map size, grew the file) while none is active in this process.
    """

    _open: dict[Path, _Environment] = {}  # noqa: RUF012 - the process's registry, under _registry
    _registry = threading.Lock()

    def __init__(self, path: Path, map_size: int) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # who chose what is nobody else's
        self._path = path
        self._env = lmdb.open(str(path), map_size=map_size, max_readers=_MAX_READERS, mode=0o600)
        try:
            self._check_length()
        except BaseException:
            self._env.close()
            raise
        self.free_dead_readers()
        self._users = 0
        self._active = 0
        self._adopting = 0  # threads that wait for `_active` to become 0
        self._idle = threading.Condition()  # also the lock of the counts

    @classmethod
    def open(cls, path: Path, map_size: int) -> _Environment:
        path = path.resolve()
        with cls._registry:
            env = cls._open.get(path)
            if env is None:
                try:
                    env = cls._open[path] = cls(path, map_size)
                except (*_DAMAGE, lmdb.VersionMismatchError) as error:
                    raise _damaged(path, str(error)) from error
                except (lmdb.Error, OSError) as error:
                    raise FeatureStoreUnavailable(
                        f"cannot open the feature store {path}: {error}"
                    ) from error
            env._users += 1
            return env

    def _check_length(self) -> None:
        """A file that was cut off is refused: reading what is missing would kill the process.

        LMDB does not write pages that one transaction takes and gives back: a whole file may lack
        the last few. It is made longer then (which takes no room on a full disk), so that nobody
        can read beyond its end.
        """
        file = self._path / "data.mdb"
        if file.stat().st_size >= self._needed():
            return
        with self._env.begin(write=True):  # nobody else makes it longer meanwhile
            found, needed = file.stat().st_size, self._needed()
            if needed - found > min(_MOST_UNWRITTEN, found // 4):
                raise _damaged(self._path, f"data.mdb has {found} bytes of at least {needed}")
            if found < needed:
                os.truncate(file, needed)

    def _needed(self) -> int:
        """Bytes of all pages that LMDB has ever taken."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def free_dead_readers(self) -> int:
        """Free the slots of killed processes, and with them the pages that those pin; how many."""
        return self._env.reader_check()

    def release(self) -> None:
        with self._registry:
            self._users -= 1
            if self._users == 0:
                del self._open[self._path]
                self._env.close()

    def begin(self, *, write: bool) -> lmdb.Transaction:
        """A transaction; when it has been committed or aborted, call `ended`."""
        with self._idle:
            self._active += 1
        try:
            try:
                return self._env.begin(write=write)
            except lmdb.MapResizedError:
                self._adopt_map_size()
                return self._env.begin(write=write)
            except lmdb.ReadersFullError:
                if not self.free_dead_readers():
                    raise
                return self._env.begin(write=write)
        except BaseException:
            self.ended()
            raise

    def ended(self) -> None:
        with self._idle:
            self._active -= 1
            if self._adopting and not self._active:
                self._idle.notify_all()

    def _adopt_map_size(self) -> None:
        with self._idle:
            self._active -= 1
            self._adopting += 1
            self._idle.wait_for(lambda: self._active == 0)
            self._adopting -= 1
            self._env.set_mapsize(0)
            self._active += 1


def _key(group: str, entity_id: str) -> bytes:
    return f"{group}:{entity_id}".encode()


# lmdb types its answers as bytes or memoryview; without buffers=True they are bytes.
def _get(txn: lmdb.Transaction, key: bytes) -> bytes | None:
    return cast("bytes | None", txn.get(key))


def _items(txn: lmdb.Transaction) -> Iterator[tuple[bytes, bytes]]:
    return cast("Iterator[tuple[bytes, bytes]]", iter(txn.cursor()))


def _apply(txn: lmdb.Transaction, write: GuardedWrite) -> bool:
    stored = _get(txn, _key(write.guard_group, write.entity_id))
    if row_version(stored) != write.expected_version:
        return False
    for group, row in write.rows.items():
        txn.put(_key(group, write.entity_id), row)
    return True


def _group_of(key: bytes) -> str:
    """The group of a row, or a text that is none for another application's key."""
    group, separator, _ = key.partition(b":")
    return group.decode(errors="replace") if separator else ""
