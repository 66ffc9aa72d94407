"""Embedding tables declared by a feature schema: one weight matrix, one look-up per batch.

Three ways to store a schema's features in the rows of one matrix:

per_field  a range of rows per feature, a row per id (the tables of the textbook, laid end to end)
hashed     the same, but a feature never has more than `rows` rows: larger vocabularies are hashed
unified    all features share `rows` rows; an id is looked up `lookups` times under different hashes
           and the parts are concatenated ("Unified Embedding: Battle-Tested Feature Representations
           for Web-Scale ML Systems", arXiv 2305.12102, feature multiplexing)

Row 0 is zero and gets no gradient. Id 0, unknown or padding, is always row 0: it adds nothing to a
sum or a mean, whatever the storage. Hashes depend on the feature's name and the id alone, so they
are the same in every process and version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional

Storage = Literal["per_field", "hashed", "unified"]
Pooling = Literal["mean", "sum"]

# The finaliser of splitmix64, its constants as signed numbers (torch has no unsigned arithmetic).
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_NOT_NEGATIVE = 2**63 - 1


@dataclass(frozen=True)
class CategoricalField:
    """One id per row, 0..vocabulary-1, 0 unknown."""

    name: str
    vocabulary: int


@dataclass(frozen=True)
class Bag:
    """Up to a fixed number of ids per row, 0 is padding; pooled to one field."""

    name: str
    vocabulary: int
    pooling: Pooling = "mean"


@dataclass(frozen=True)
class History:
    """Past values of the categorical field `of`, newest first, 0 is padding."""

    name: str
    of: str


@dataclass(frozen=True)
class FeatureSchema:
    """What the rows of a table hold, and the tasks to predict.

    Columns of a batch are in the order of `categorical` and `dense`.
    """

    categorical: tuple[CategoricalField, ...]
    tasks: tuple[str, ...]
    dense: tuple[str, ...] = ()
    bags: tuple[Bag, ...] = ()
    histories: tuple[History, ...] = ()

    def __post_init__(self) -> None:
        names = [f.name for f in self.categorical] + [b.name for b in self.bags]
        names += [h.name for h in self.histories]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"features {twice} are declared twice: give each a name of its own")
        known = {f.name for f in self.categorical}
        for history in self.histories:
            if history.of not in known:
                raise ValueError(
                    f"history {history.name!r} is of {history.of!r}, which is no categorical field"
                )


class TableBatch(NamedTuple):
    """N rows: ids int[N, F], dense float[N, D], ids int[N, S] per bag, int[N, L] per history."""

    categorical: Tensor
    dense: Tensor
    bags: Mapping[str, Tensor]
    histories: Mapping[str, Tensor]


class Sequence(NamedTuple):
    """All histories side by side: tokens float[N, L, k], int64[N, L] number of the history."""

    tokens: Tensor
    types: Tensor
    keep: Tensor  # bool[N, L]


@dataclass(frozen=True)
class EmbeddingOptions:
    """How a schema is stored; `rows` and `lookups` as in the module docstring."""

    storage: Storage = "per_field"
    rows: int = 100_000
    lookups: int = 2
    init_std: float = 0.05


class EmbeddingTables(nn.Module):
    """Embeds the features of a schema, `width` numbers each.

    Fields come in the order categorical, dense (value times a vector), bags, pooled histories.
    A history shares the rows of its field; with `own_history` it has a range of its own.
    Gradients are dense unless the optimizer makes `table` sparse (`models/training/optimizers.py`).
    """

    sizes: Tensor  # int64[n]: rows of each feature
    offsets: Tensor  # int64[n]: rows before its first
    salts: Tensor  # int64[n, lookups]
    own_row: Tensor  # bool[n]: not hashed

    def __init__(
        self,
        schema: FeatureSchema,
        width: int,
        options: EmbeddingOptions | None = None,
        *,
        pool_histories: bool = True,
        own_history: bool = False,
    ) -> None:
        super().__init__()
        self.options = options = options or EmbeddingOptions()
        self.schema, self.width = schema, width
        self.pooled = schema.histories if pool_histories else ()
        vocabularies = {f.name: f.vocabulary for f in schema.categorical}
        vocabularies |= {b.name: b.vocabulary for b in schema.bags}
        self._source = {h.name: h.of for h in schema.histories}
        if own_history:
            for h in schema.histories:
                name = f"{h.of} (history)"
                vocabularies[name] = vocabularies[h.of]
                self._source[h.name] = name
        self._feature = {name: i for i, name in enumerate(vocabularies)}
        lookups = options.lookups if options.storage == "unified" else 1
        if width % lookups:
            raise ValueError(f"width {width} cannot be split into {lookups} look-ups")
        self._declare(vocabularies, lookups)
        self.table = nn.Embedding(self.rows, width // lookups, padding_idx=0)
        self.dense_weight = nn.Parameter(torch.empty(len(schema.dense), width))
        for weight in (self.table.weight, self.dense_weight):
            nn.init.normal_(weight, std=options.init_std)
        with torch.no_grad():
            self.table.weight[0].zero_()
        self.num_fields = (
            len(schema.categorical) + len(schema.dense) + len(schema.bags) + len(self.pooled)
        )

    def _declare(self, vocabularies: Mapping[str, int], lookups: int) -> None:
        options = self.options
        if options.storage == "unified":
            sizes, offsets = [options.rows - 1] * len(vocabularies), [0] * len(vocabularies)
            self.rows = options.rows
        else:
            limit = options.rows if options.storage == "hashed" else math.inf
            sizes = [int(min(v - 1, limit)) for v in vocabularies.values()]
            offsets = [sum(sizes[:i]) for i in range(len(sizes))]
            self.rows = 1 + sum(sizes)
        if min(sizes, default=1) < 1:
            raise ValueError("a table has no row for any known id: raise `rows` or a vocabulary")
        salts = [
            [xxhash.xxh64_intdigest(n.encode(), seed=i) & _NOT_NEGATIVE for i in range(lookups)]
            for n in vocabularies
        ]
        own = [s == v - 1 for s, v in zip(sizes, vocabularies.values(), strict=True)]
        self.hashing = options.storage == "unified" or not all(own)
        keep = {"persistent": False}
        self.register_buffer("sizes", torch.tensor(sizes), **keep)
        self.register_buffer("offsets", torch.tensor(offsets), **keep)
        self.register_buffer("salts", torch.tensor(salts), **keep)
        self.register_buffer("own_row", torch.tensor(own), **keep)

    def locate(self, ids: Tensor, features: Tensor | slice) -> Tensor:
        """Rows int64[..., n, lookups] of ids int64[..., n] of the features of these n numbers."""
        ids = ids.long()
        rows = (ids + self.offsets[features])[..., None]
        if self.hashing:
            salted = _mix(ids[..., None] + self.salts[features])
            hashed = 1 + salted % self.sizes[features][..., None]
            hashed = hashed + self.offsets[features][..., None]
            exact = self.own_row[features][..., None] & (self.options.storage == "hashed")
            rows = torch.where(exact, rows, hashed)
        return torch.where(ids[..., None] > 0, rows, 0)

    def _of(self, name: str, ids: Tensor) -> Tensor:
        number = self._feature[self._source.get(name, name)]
        return self.locate(ids, torch.full_like(ids, number, dtype=torch.long))

    def lookup(self, rows: Tensor) -> Tensor:
        """Rows int64[..., n, lookups] -> float[..., n, width]."""
        found: Tensor = self.table(rows)
        return found.flatten(-2)

    def pool(self, name: str, ids: Tensor, pooling: Pooling = "mean") -> Tensor:
        """Mean or sum of a bag or history, ids int64[N, S] -> float[N, width]; zeros if empty."""
        rows = self._of(name, ids)
        parts = [
            functional.embedding_bag(
                part, self.table.weight, mode=pooling, padding_idx=0, sparse=self.table.sparse
            )
            for part in rows.unbind(-1)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forward(self, batch: TableBatch) -> Tensor:
        """All fields float[N, num_fields, width]."""
        schema = self.schema
        parts = [self.lookup(self.locate(batch.categorical, slice(len(schema.categorical))))]
        if schema.dense:
            parts.append(batch.dense[..., None] * self.dense_weight)
        for bag in schema.bags:
            parts.append(self.pool(bag.name, batch.bags[bag.name], bag.pooling)[:, None])
        for history in self.pooled:
            parts.append(self.pool(history.name, batch.histories[history.name])[:, None])
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def sequence(self, batch: TableBatch, histories: tuple[History, ...] | None = None) -> Sequence:
        """The items of the histories (all unless chosen), concatenated along L, padding kept."""
        chosen = self.schema.histories if histories is None else histories
        if not chosen:
            raise ValueError("the schema declares no history")
        ids = [batch.histories[h.name] for h in chosen]
        rows = [self._of(h.name, each) for h, each in zip(chosen, ids, strict=True)]
        types = [torch.full_like(each, i, dtype=torch.long) for i, each in enumerate(ids)]
        return Sequence(
            self.lookup(torch.cat(rows, dim=1)), torch.cat(types, 1), torch.cat(ids, 1) > 0
        )

    def penalty(self) -> Tensor:
        """Half the sum of squares of all weights, for an L2 term.

        Its gradient is that of every row: ValueError with sparse gradients.
        """
        if self.table.sparse:
            raise ValueError("an L2 term on embeddings needs dense gradients: l2=0, or not sparse")
        return 0.5 * (self.table.weight.square().sum() + self.dense_weight.square().sum())


def _mix(value: Tensor) -> Tensor:
    """splitmix64's finaliser, without the sign bit: int64 -> 0..2^63-1."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        value = (value ^ _shifted(value, shift)) * multiplier
    return (value ^ _shifted(value, 31)) & _NOT_NEGATIVE


def _shifted(value: Tensor, by: int) -> Tensor:
    """Right shift that brings in zeros."""
    return (value >> by) & ((1 << (64 - by)) - 1)
