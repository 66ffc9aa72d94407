"""From `feature_store.url` in the settings to a store: the one place that knows the backends."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from feature_store.interface import FeatureStore
from feature_store.lmdb_store import LmdbFeatureStore
from feature_store.redis_store import RedisFeatureStore
from feature_store.urls import public
from models.schema.groups import FeatureGroup


def connect(
    url: str,
    groups: Mapping[str, FeatureGroup],
    *,
    installation: str | None,
    timeout_ms: float,
    lmdb_map_size_mb: int,
) -> FeatureStore:
    """The store of these groups, by name, behind `url`; ValueError for a URL that names none.

    `lmdb://run/features` is relative to the working directory, `lmdb:///var/lib/tandem` absolute.
    `redis://host:port/db`, `rediss://` (TLS) and `unix:///path/to/socket?db=0` are Redis, which is
    first contacted on use; opening LMDB may raise FeatureStoreUnavailable. `installation` (letters,
    digits, "_", "-") says which rows of a Redis are ours; a folder is one installation's alone.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that are no IPv6 address
        parts = urlsplit("")
    if parts.scheme == "lmdb" and (parts.netloc + parts.path).strip("/"):
        return LmdbFeatureStore(Path(unquote(parts.netloc + parts.path)), groups, lmdb_map_size_mb)
    if parts.scheme in ("redis", "rediss", "unix") and (parts.netloc or parts.path):
        with contextlib.suppress(ValueError):  # its message may quote the password
            return RedisFeatureStore(url, groups, timeout_ms, installation)
    raise ValueError(
        f"feature_store.url {public(url)!r} names no feature store: use lmdb://folder,"
        " lmdb:///folder, redis://host:port/db, rediss://host:port/db or unix:///socket (in a"
        " password, write characters like / and # as %2F and %23)"
    )
