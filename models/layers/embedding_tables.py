"""Embedding tables declared by a feature schema: one weight matrix, one look-up per batch.

Three ways to store a schema's features in the rows of one matrix:

per_field  a range of rows per feature, a row per id (the tables of the textbook, laid end to end)
hashed     the same, but a feature never has more than `rows` rows: larger vocabularies are hashed
unified    all features share `rows` rows; an id is looked up `lookups` times under different hashes
           and the parts are concatenated, and cut to the width ("Unified Embedding: Battle-Tested
           Feature Representations for Web-Scale ML Systems", arXiv 2305.12102, feature
           multiplexing)

Row 0 is zero and gets no gradient. Id 0, unknown or padding, is always row 0: it adds nothing to a
sum or a mean, whatever the storage. Hashes depend on the feature's name and the id alone, so they
are the same in every process and version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional

from models.rows import by_blocks, put, with_room
from models.schema.declaration import Tables
from models.schema.inputs import SIDES, FeatureSchema, Input, Side

# The finaliser of splitmix64, its constants as signed numbers (torch has no unsigned arithmetic).
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_NOT_NEGATIVE = 2**63 - 1


class Features(NamedTuple):
    """What is known of N users or rows, as the inputs of their side say and in their order.

    `lists`: by input, int[N, S] ids of bags and histories, float[N, n] of weights and vectors;
    `types`: of the histories of several types, int[N, L].
    """

    ids: Tensor  # int[N, F]
    numbers: Tensor  # float[N, D]
    lists: Mapping[str, Tensor]
    types: Mapping[str, Tensor]

    def take(self, index: Tensor | slice) -> Features:
        """Some of the rows."""
        return Features(
            self.ids[index],
            self.numbers[index],
            {name: values[index] for name, values in self.lists.items()},
            {name: values[index] for name, values in self.types.items()},
        )


class Candidates(NamedTuple):
    """N rows to score: their items' features, or the rows int64[N] of items that the tables
    remember; and what is their own."""

    items: Features | Tensor
    own: Features


class Sequence(NamedTuple):
    """All histories side by side: tokens float[N, L, k] and their types int64[N, L], which are
    numbered through all histories."""

    tokens: Tensor
    types: Tensor
    keep: Tensor  # bool[N, L]


@dataclass(frozen=True)
class EmbeddingOptions(Tables):
    """How a schema is stored, as in the module docstring, and drawn."""

    init_std: float = 0.05


class EmbeddingTables(nn.Module):
    """Embeds the inputs of a schema, `width` numbers each.

    Fields of a side come in the order of `KINDS`: ids, numbers, bags, weights, vectors, pools.
    With `own_history` a history has a range of rows of its own. Gradients are dense unless the
    optimizer makes `table` sparse (`models/training/optimizers.py`).
    """

    sizes: Tensor  # int64[n]: rows of each feature
    offsets: Tensor  # int64[n]: rows before its first
    salts: Tensor  # int64[n, lookups]
    own_row: Tensor  # bool[n]: not hashed
    id_features: Tensor  # int64[F]: of each id input, its feature
    remembered: Tensor | None  # float[n + 1, Fi, k]

    def __init__(
        self,
        schema: FeatureSchema,
        width: int,
        options: EmbeddingOptions | None = None,
        *,
        own_history: bool = False,
    ) -> None:
        super().__init__()
        self.options = options = options or EmbeddingOptions()
        self.schema, self.width = schema, width
        embedded = [i for i in schema.inputs if i.kind in ("id", "bag", "weights", "history")]
        vocabularies = {i.name: i.size for i in embedded if not i.table}
        self._source = {i.name: i.table for i in embedded if i.table}
        if own_history:
            for each in schema.histories:
                name = f"{each.table} (history)"
                vocabularies[name] = each.size
                self._source[each.name] = name
        self._feature = {name: i for i, name in enumerate(vocabularies)}
        lookups = options.lookups if options.storage == "unified" else 1
        self._declare(vocabularies, lookups)
        self.table = nn.Embedding(self.rows, math.ceil(width / lookups), padding_idx=0)
        self._has_fields = {side: schema.fields(side) > 0 for side in SIDES}  # asked for each batch
        self._sides: dict[Side, tuple[slice, slice]] = {}  # of ids and of numbers, in what follows
        first = [0, 0]
        features = []
        for side in SIDES:
            ids, numbers = schema.of("id", side), schema.of("number", side)
            features += [self._feature[self._source.get(i.name, i.name)] for i in ids]
            last = [first[0] + len(ids), first[1] + len(numbers)]
            self._sides[side] = slice(first[0], last[0]), slice(first[1], last[1])
            first = last
        self.register_buffer(
            "id_features", torch.tensor(features, dtype=torch.long), persistent=False
        )
        self.register_buffer("remembered", None, persistent=False)
        self.number_weight = nn.Parameter(torch.empty(len(schema.of("number")), width))
        self.vector_maps = nn.ModuleList(
            nn.Linear(each.size, width, bias=False) for each in schema.of("vector")
        )
        self._vector = {each.name: i for i, each in enumerate(schema.of("vector"))}
        for weight in (self.table.weight, self.number_weight):
            nn.init.normal_(weight, std=options.init_std)
        with torch.no_grad():
            self.table.weight[0].zero_()

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
        return self.locate(ids, slice(number, number + 1))  # one for all of them

    def lookup(self, rows: Tensor) -> Tensor:
        """Rows int64[..., n, lookups] -> float[..., n, width]."""
        found: Tensor = self.table(rows)
        return found.flatten(-2)[..., : self.width]

    def pool(self, name: str, ids: Tensor, pooling: Literal["mean", "sum"] = "mean") -> Tensor:
        """Mean or sum of a bag or history, ids int64[N, S] -> float[N, width]; zeros if empty."""
        rows = self._of(name, ids)
        parts = [
            functional.embedding_bag(
                part, self.table.weight, mode=pooling, padding_idx=0, sparse=self.table.sparse
            )
            for part in rows.unbind(-1)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)[:, : self.width]

    def forward(self, features: Features, side: Side) -> Tensor:
        """The fields of users or rows, float[N, fields of the side, width]."""
        schema, (ids, numbers) = self.schema, self._sides[side]
        parts = [self.lookup(self.locate(features.ids, self.id_features[ids]))]
        if numbers.start < numbers.stop:
            parts.append(features.numbers[..., None] * self.number_weight[numbers])
        for bag in schema.of("bag", side):
            parts.append(self.pool(bag.name, features.lists[bag.name], bag.pooling)[:, None])
        for each in schema.of("weights", side):
            parts.append((features.lists[each.name][:, 1:] @ self.values(each))[:, None])
        for each in schema.of("vector", side):
            mapped = self.vector_maps[self._vector[each.name]](features.lists[each.name])
            parts.append(mapped[:, None])
        for each in schema.of("pool", side):
            parts.append(self.pool(each.of, _pooled(features, each))[:, None])
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def candidates(self, rows: Candidates) -> Tensor:
        """The fields of items and rows, float[N, Fi + Fr, width]."""
        if not self._has_fields["item"]:
            return self(rows.own, "row")
        if isinstance(rows.items, Features):
            fields = self(rows.items, "item")
        else:
            assert self.remembered is not None
            fields = self.remembered.index_select(0, rows.items)
        if not self._has_fields["row"]:
            return fields
        return torch.cat([fields, self(rows.own, "row")], dim=1)

    @torch.no_grad()
    def remember(self, items: Callable[[Tensor], Features], rows: np.ndarray, count: int) -> None:
        """Embed `items(rows)` once, for serving: weights must not change any more. `rows` int64 are
        all of `count`, or those that are new or other than what is remembered."""

        def embedded(part: Tensor) -> Tensor:
            fields: Tensor = self(items(part), "item")
            return fields

        found = by_blocks(embedded, rows, self.salts.device)
        if self.remembered is not None and len(rows) < count:
            self.remembered = put(self.remembered, rows, found, count)
        else:
            self.remembered = with_room(found)

    def forget(self) -> None:
        """Embed items with each row again."""
        self.remembered = None

    def values(self, one: Input) -> Tensor:
        """The embeddings of the ids 1.. of an input, float[size - 1, width]."""
        return self.lookup(self._of(one.name, torch.arange(1, one.size, device=self.salts.device)))

    def sequence(self, users: Features, histories: tuple[Input, ...] | None = None) -> Sequence:
        """The items of the histories (all unless chosen), concatenated along L, padding kept."""
        chosen = self.schema.histories if histories is None else histories
        if not chosen:
            raise ValueError("the schema declares no history")
        ids = [users.lists[h.name] for h in chosen]
        rows = [self._of(h.name, each) for h, each in zip(chosen, ids, strict=True)]
        types, first = [], 0
        for history, each in zip(chosen, ids, strict=True):
            own = users.types.get(history.name)
            types.append(torch.full_like(each, first, dtype=torch.long) if own is None
                         else own.long() + first)  # fmt: skip
            first += history.types
        return Sequence(
            self.lookup(torch.cat(rows, dim=1)), torch.cat(types, 1), torch.cat(ids, 1) > 0
        )

    def penalty(self) -> Tensor:
        """Half the sum of squares of all weights, for an L2 term.

        Its gradient is that of every row: ValueError with sparse gradients.
        """
        if self.table.sparse:
            raise ValueError("an L2 term on embeddings needs dense gradients: l2=0, or not sparse")
        return 0.5 * (self.table.weight.square().sum() + self.number_weight.square().sum())


def _pooled(features: Features, pool: Input) -> Tensor:
    """The ids of a history that a pool is of, the others 0."""
    ids = features.lists[pool.of]
    if not pool.only:
        return ids
    types = features.types[pool.of]
    keep = torch.zeros_like(types, dtype=torch.bool)
    for each in pool.only:
        keep |= types == each
    return ids * keep


def _mix(value: Tensor) -> Tensor:
    """splitmix64's finaliser, without the sign bit: int64 -> 0..2^63-1."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        value = (value ^ _shifted(value, shift)) * multiplier
    return (value ^ _shifted(value, 31)) & _NOT_NEGATIVE


def _shifted(value: Tensor, by: int) -> Tensor:
    """Right shift that brings in zeros."""
    return (value >> by) & ((1 << (64 - by)) - 1)
