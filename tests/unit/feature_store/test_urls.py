"""URLs in messages show no secret."""

from __future__ import annotations

import pytest

from feature_store.urls import public


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:pass@h:1/0", "redis://h:1/0"),
        ("rediss://me:pass@h:1/0?password=pass", "rediss://h:1/0"),
        ("redis://h:1/0?password=p@pass", "redis://..."),
        ("redis://:pa?pass@h:1/0", "redis://..."),
        ("redis://:pa/pass#pass@h:1/0", "redis://h:1/0"),
        ("unix:///run/redis.sock?db=0&password=pass", "unix:///run/redis.sock"),
        ("kafka://me:pass@h:1,me:pass@i:2", "kafka://i:2"),
        ("lmdb:///home/me@h/features?", "lmdb:///home/me@h/features?"),
        ("me:pass@h", "h"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert public(url) == shown
