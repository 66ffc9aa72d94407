"""Ids as numbers, where millions of them are kept.

Among a million ids two that collide have odds of one in 37 million.
"""

from __future__ import annotations

import xxhash


def hash_of(*ids: str) -> int:
    """The signed 64-bit number that stands for the ids."""
    unsigned = xxhash.xxh3_64_intdigest("\0".join(ids).encode())
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned
