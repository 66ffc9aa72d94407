"""Features in Redis: the backend for more than one machine.

A read is one MGET. A write is one call of a Redis Function per entity, pipelined: it compares the
version in the stored guard row's header and sets all rows of the entity, each with the expiry of
its group, or none. The function travels with this file and is loaded whenever the server does not
know it (first use, restart, failover). Functions came with Redis 7.0: an older server can be read,
and refuses writes with a sentence (FeatureStoreUnfit).

Not guaranteed: an acknowledged write survives the server's crash only as far as its persistence
settings say (`appendfsync always` for all, `everysec` for all but the last second). Single node or
primary with replicas only: on Redis Cluster an MGET across entities would be refused, although all
keys of one entity already share a hash tag, as the function needs.

    {user:42}:profile          a row's key; NAME:{user:42}:profile in an installation with a name
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import redis
import redis.asyncio
import xxhash
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from feature_store.codec import VERSION_AT, event_time_of, expiry_ms
from feature_store.interface import FeatureStoreUnavailable, FeatureStoreUnfit, GuardedWrite, RowKey
from feature_store.urls import public
from models.schema.groups import FeatureGroup

_BODY = f"""
local function write(keys, args)
  local found = redis.call('GETRANGE', keys[1], {VERSION_AT}, {VERSION_AT + 7})
  if #found < 8 then found = string.rep('\\0', 8) end
  if found ~= args[1] then return 0 end
  for i = 2, #keys do
    redis.call('SET', keys[i], args[2 * i - 2], 'PXAT', args[2 * i - 1])
  end
  return 1
end
"""
# Named after its text, so that two releases of Tandem on one server do not replace each other's.
_FUNCTION = f"tandem_write_{xxhash.xxh3_64_hexdigest(_BODY.encode())}"
_LIBRARY = f"#!lua name={_FUNCTION}\n{_BODY}\nredis.register_function('{_FUNCTION}', write)\n"
_OF_A_CLUSTER = (AskError, ClusterCrossSlotError, ClusterDownError)  # MOVED is an AskError

# Calls per round trip: the server answers a chunk well within the timeout, however big the batch.
_CHUNK = 64
_MAX_CONNECTIONS = 64


class RedisFeatureStore:
    """A FeatureStore on one Redis server; `url` is redis://, rediss:// or unix://.

    Connects on use. A call fails within about `timeout_ms` when the server is down or hangs, and
    is never retried here; the first call after the server's return succeeds. Thread-safe, except
    that `read_async` belongs to one event loop. Stores of one server whose `installation` differs
    see nothing of each other: a name has neither colon nor brace, and a key of the one without a
    name begins with a brace.
    """

    def __init__(
        self,
        url: str,
        groups: Mapping[str, FeatureGroup],
        timeout_ms: float,
        installation: str | None,
    ) -> None:
        self._groups = groups
        self._prefix = f"{installation}:" if installation else ""
        self._where = public(url).partition("://")[2]
        timeout_s = timeout_ms / 1000.0
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry_on_error": [],
            "protocol": 2,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        self._client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        self._async_client = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                url,
                retry=AsyncRetry(NoBackoff(), 0),
                max_connections=_MAX_CONNECTIONS,
                timeout=timeout_s,
                **options,
            )
        )

    def read(self, keys: Sequence[RowKey]) -> list[bytes | None]:
        if not keys:
            return []
        with self._translated():
            return cast("list[bytes | None]", self._client.mget([self._key(*key) for key in keys]))

    async def read_async(self, keys: Sequence[RowKey], timeout_s: float) -> list[bytes | None]:
        if not keys:
            return []
        with self._translated(ask=False):  # it would hold up the event loop
            try:
                async with asyncio.timeout(max(timeout_s, 0.0)):
                    rows = await self._async_client.mget([self._key(*key) for key in keys])
            except TimeoutError as error:
                raise FeatureStoreUnavailable(
                    f"Redis at {self._where} did not answer within {timeout_s * 1000:.0f} ms, the"
                    " time that the request had left for it"
                ) from error
            return cast("list[bytes | None]", rows)

    def write(self, writes: Sequence[GuardedWrite]) -> list[bool]:
        applied: list[bool] = []
        with self._translated():
            for start in range(0, len(writes), _CHUNK):
                applied += self._write_chunk(writes[start : start + _CHUNK])
        return applied

    def sweep(self, now_ms: int) -> int:
        """Nothing to do: Redis expires rows by itself."""
        return 0

    def clear(self, groups: Collection[str]) -> int:
        deleted, cursor = 0, -1
        with self._translated():
            while cursor:
                cursor, keys = self._client.scan(
                    max(cursor, 0), match=self._prefix + "{*}:*", count=1_000
                )
                if ours := [key for key in keys if self._is_of(cast("bytes", key), groups)]:
                    deleted += self._client.unlink(*ours)
        return deleted

    def close(self) -> None:
        self._client.close()

    async def close_async(self) -> None:
        await self._async_client.aclose()
        self._client.close()

    def _write_chunk(self, writes: Sequence[GuardedWrite]) -> list[bool]:
        answers = self._call(writes)
        if any(_function_is_unknown(answer) for answer in answers):
            self._client.function_load(_LIBRARY, replace=True)
            unknown = [i for i, answer in enumerate(answers) if _function_is_unknown(answer)]
            for i, answer in zip(unknown, self._call([writes[i] for i in unknown]), strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer == 1 for answer in answers]

    def _call(self, writes: Sequence[GuardedWrite]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for write in writes:
                keys, args = self._call_arguments(write)
                pipeline.fcall(_FUNCTION, len(keys), *keys, *args)
            return pipeline.execute(raise_on_error=False)

    def _key(self, group: str, entity_id: str) -> bytes:
        """The entity in braces is the hash tag: all rows of one entity live in one slot."""
        if group not in self._groups:
            raise ValueError(f"the store was opened without the group {group!r}")
        return f"{self._prefix}{{{self._groups[group].entity}:{entity_id}}}:{group}".encode()

    def _is_of(self, key: bytes, groups: Collection[str]) -> bool:
        entity, _, group = key.decode(errors="replace").rpartition("}:")
        if group not in groups:
            return False
        return entity.startswith(f"{self._prefix}{{{self._groups[group].entity}:")

    def _call_arguments(self, write: GuardedWrite) -> tuple[list[bytes], list[bytes | int]]:
        keys = [self._key(write.guard_group, write.entity_id)]
        args: list[bytes | int] = [struct.pack("<Q", write.expected_version)]
        for group, row in write.rows.items():
            keys.append(self._key(group, write.entity_id))
            args += [row, max(1, expiry_ms(self._groups[group], event_time_of(row)))]
        return keys, args

    @contextmanager
    def _translated(self, *, ask: bool = True) -> Iterator[None]:
        """`ask`: whether the server may be asked for its version, to name it."""
        try:
            yield
        except (RedisError, OSError) as error:
            raise self._said(error, ask) from error

    def _said(self, error: Exception, ask: bool) -> FeatureStoreUnavailable:
        """The error as a sentence that says what to do. It quotes no key and no value."""
        at = f"Redis at {self._where}"
        text = str(error).partition(", with args beginning with")[0]
        if isinstance(error, NoPermissionError) or "unknown command" in text.lower():
            version = f" ({self._version()})" if ask else ""
            return FeatureStoreUnfit(
                f"{at}{version} refuses a command that the feature store needs ({text});"
                " it must be Redis 7.0 or newer, with FCALL and FUNCTION LOAD allowed to this user"
            )
        if isinstance(error, _OF_A_CLUSTER):
            return FeatureStoreUnfit(
                f"{at} is a node of a Redis Cluster, and rows of several entities are read at once:"
                " set feature_store.url to a single server or a primary with replicas"
            )
        if "WRONGTYPE" in text:
            return FeatureStoreUnfit(
                f"{at} holds something else under the store's keys: name a database of its own in"
                " feature_store.url"
            )
        if isinstance(error, ReadOnlyError):
            return FeatureStoreUnavailable(
                f"{at} is a read-only replica: set feature_store.url to its primary, or wait for"
                " the failover"
            )
        if isinstance(error, OutOfMemoryError):
            return FeatureStoreUnavailable(
                f"{at} has no memory left: raise its maxmemory (with policy noeviction, so that it"
                " drops no features by itself)"
            )
        if isinstance(error, BusyLoadingError):
            return FeatureStoreUnavailable(f"{at} is still loading its data")
        return FeatureStoreUnavailable(
            f"{at} did not answer ({type(error).__name__}: {text});"
            " check that it runs and that feature_store.url and timeout_ms fit"
        )

    def _version(self) -> str:
        try:
            found = cast("dict[str, Any]", self._client.info("server"))
        except (RedisError, OSError):
            return "of a version that it does not tell"
        return f"version {found.get('redis_version', 'unknown')}"


def _function_is_unknown(answer: object) -> bool:
    return isinstance(answer, ResponseError) and "Function not found" in str(answer)
