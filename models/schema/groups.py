"""Groups of features: packed rows, by the names, types and places of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import xxhash

FOR_EVER_S = 100 * 365 * 86_400.0


@dataclass(frozen=True)
class Feature:
    """One named field of a group. `shape` () is a scalar; `dtype` is a little-endian numpy code.

    `whole`: its numbers are one value, so that in another length it is another one. `became`: of an
    older layout, what the feature is called now, where that is another name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    default: float = 0
    doc: str = ""
    whole: bool = False
    became: str = ""

    @property
    def name_now(self) -> str:
        return self.became or self.name


@dataclass(frozen=True)
class FeatureGroup:
    """Features of one entity that are written and read together as one packed row.

    `ttl_s` counts from the event time of the newest event in the row: past it the row is as good
    as missing and the declared defaults are served (and counted). `meaning` says in JSON what the
    values stand for (vocabularies, half-lives): rows of one layout and two meanings are
    two things, which schema.lock tells apart and the hash does not. `older` are other layouts of
    the group whose rows are read. `writes` is the one of them that is written (None: this one), in
    place of rows of layouts before it; rows whose layouts are in `stay` keep them.
    """

    name: str
    entity: str
    ttl_s: float
    features: tuple[Feature, ...]
    meaning: str = ""
    older: tuple[FeatureGroup, ...] = field(default=(), compare=False, repr=False)
    writes: FeatureGroup | None = field(default=None, compare=False, repr=False)
    stay: frozenset[int] = field(default=frozenset(), compare=False, repr=False)  # hashes

    def __hash__(self) -> int:
        return self.hash

    @cached_property
    def dtype(self) -> np.dtype:
        """Packed structured dtype of the row's values (without the codec's header)."""
        return np.dtype([(f.name, f.dtype, f.shape) for f in self.features])

    @cached_property
    def ttl_ms(self) -> int:
        """`ttl_s` as whole milliseconds."""
        return int(self.ttl_s * 1000)

    @cached_property
    def hash(self) -> int:
        """64-bit hash of names, types and shapes; defaults and meaning are not in it."""
        layout = [self.name, self.entity, [(f.name, f.dtype, f.shape) for f in self.features]]
        return xxhash.xxh3_64_intdigest(json.dumps(layout).encode())

    @cached_property
    def older_by_hash(self) -> Mapping[int, FeatureGroup]:
        return {group.hash: group for group in self.older}

    def defaults(self) -> np.ndarray:
        """A 0-d structured array holding every feature's declared default."""
        row = np.zeros((), self.dtype)
        for feature in self.features:
            row[feature.name] = feature.default
        return row
