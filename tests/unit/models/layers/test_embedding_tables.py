"""Embedding tables: padding and unknown ids add nothing, rows are where the schema says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.embedding_tables import (
    Bag,
    CategoricalField,
    EmbeddingOptions,
    EmbeddingTables,
    FeatureSchema,
    History,
    TableBatch,
)

SCHEMA = FeatureSchema(
    (CategoricalField("user", 9), CategoricalField("item", 12)),
    ("click",),
    ("price",),
    (Bag("tags", 6), Bag("words", 7, "sum")),
    (History("clicked", "item"), History("followed", "user")),
)
STORAGES = [
    EmbeddingOptions(),
    EmbeddingOptions("hashed", rows=5),
    EmbeddingOptions("unified", rows=40, lookups=2),
    EmbeddingOptions("unified", rows=40, lookups=1),
]
every_storage = pytest.mark.parametrize(
    "options", STORAGES, ids=lambda o: f"{o.storage}-{o.lookups}"
)


def _batch(rows: int = 5, length: int = 4, seed: int = 0) -> TableBatch:
    g = torch.Generator().manual_seed(seed)

    def ids(below: int) -> Tensor:
        return torch.randint(0, below, (rows, length), generator=g)

    one = torch.stack([torch.randint(0, n, (rows,), generator=g) for n in (9, 12)], dim=1)
    return TableBatch(
        one,
        torch.randn(rows, 1, generator=g),
        {"tags": ids(6), "words": ids(7)},
        {"clicked": ids(12), "followed": ids(9)},
    )


def _padded(batch: TableBatch, extra: int) -> TableBatch:
    def more(ids: Tensor) -> Tensor:
        return torch.cat([ids, torch.zeros(len(ids), extra, dtype=ids.dtype)], dim=1)

    return batch._replace(
        bags={k: more(v) for k, v in batch.bags.items()},
        histories={k: more(v) for k, v in batch.histories.items()},
    )


@every_storage
def test_fields_are_what_a_lookup_by_hand_gives(options: EmbeddingOptions) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch()
    fields = tables(batch)
    assert fields.shape == (5, 7, 4)
    assert tables.num_fields == 7
    weight = tables.table.weight

    def vector(feature: int, identity: int) -> Tensor:
        rows = tables.locate(torch.tensor([identity]), torch.tensor([feature]))[0]
        return torch.cat([weight[r] for r in rows])

    of = {"user": 0, "item": 1, "tags": 2, "words": 3}
    for i in range(5):
        expected = [
            vector(0, int(batch.categorical[i, 0])),
            vector(1, int(batch.categorical[i, 1])),
        ]
        expected.append(batch.dense[i, 0] * tables.dense_weight[0])
        for ids, name in (
            (batch.bags["tags"], "tags"), (batch.bags["words"], "words"),
            (batch.histories["clicked"], "item"), (batch.histories["followed"], "user"),
        ):  # fmt: skip
            kept = [int(v) for v in ids[i] if v]
            total = sum((vector(of[name], v) for v in kept), torch.zeros(4))
            expected.append(total if name == "words" else total / max(len(kept), 1))
        torch.testing.assert_close(fields[i], torch.stack(expected))


@every_storage
@settings(max_examples=20)
@given(extra=st.integers(1, 6), seed=st.integers(0, 50))
def test_padding_and_unknown_ids_never_leak(
    options: EmbeddingOptions, extra: int, seed: int
) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch(seed=seed)
    torch.testing.assert_close(tables(_padded(batch, extra)), tables(batch))
    nothing = TableBatch(
        torch.zeros_like(batch.categorical), torch.zeros_like(batch.dense),
        {k: torch.zeros_like(v) for k, v in batch.bags.items()},
        {k: torch.zeros_like(v) for k, v in batch.histories.items()},
    )  # fmt: skip
    assert not tables(nothing).any()
    items = tables.sequence(batch)
    assert torch.equal(items.keep, torch.cat(list(batch.histories.values()), dim=1) > 0)
    assert not items.tokens[~items.keep].any()
    (tables(batch).sum() + items.tokens.sum()).backward()
    grad = tables.table.weight.grad
    assert grad is not None
    assert not grad[0].any()


@every_storage
def test_training_leaves_the_unknown_row_at_zero(options: EmbeddingOptions) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch()
    optimizer = torch.optim.AdamW(tables.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (tables(batch).square().sum() + 0.1 * tables.penalty()).backward()
        optimizer.step()
    assert not tables.table.weight[0].any()


def test_every_id_of_every_feature_has_a_row_of_its_own() -> None:
    tables = EmbeddingTables(SCHEMA, 4)
    rows = [
        int(tables.locate(torch.tensor([i]), torch.tensor([f])))
        for f, size in enumerate((9, 12, 6, 7))
        for i in range(1, size)
    ]
    assert sorted(rows) == list(range(1, tables.rows))


@settings(max_examples=30)
@given(ids=st.lists(st.integers(1, 10**9), min_size=1, max_size=30), rows=st.integers(1, 50))
def test_hashed_ids_stay_in_the_range_of_their_feature(ids: list[int], rows: int) -> None:
    schema = FeatureSchema((CategoricalField("a", 10**9 + 1), CategoricalField("b", 10**9 + 1)), ())
    tables = EmbeddingTables(schema, 2, EmbeddingOptions("hashed", rows=rows))
    assert tables.rows == 1 + 2 * rows
    found = tables.locate(torch.tensor([[i, i] for i in ids]), slice(0, 2))[..., 0]
    assert ((found[:, 0] >= 1) & (found[:, 0] <= rows)).all()
    assert ((found[:, 1] > rows) & (found[:, 1] <= 2 * rows)).all()


def test_small_vocabularies_are_not_hashed() -> None:
    exact = EmbeddingTables(SCHEMA, 4)
    hashed = EmbeddingTables(SCHEMA, 4, EmbeddingOptions("hashed", rows=11))
    ids = torch.tensor([[0, 0], [1, 1], [8, 11]])
    assert torch.equal(
        hashed.locate(ids, slice(0, 2)), exact.locate(ids, slice(0, 2))
    )  # neither vocabulary exceeds 11 known ids
    assert hashed.rows == exact.rows


def _splitmix(value: int) -> int:
    """The finaliser in unbounded integers, the sign bit dropped at the end."""
    mask = 2**64 - 1
    value &= mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) & (2**63 - 1)


@settings(max_examples=50)
@given(identity=st.integers(1, 2**31 - 1))
def test_hashes_are_those_of_the_definition(identity: int) -> None:
    """Therefore the same in every process and on every device."""
    schema = FeatureSchema((CategoricalField("item", 2**31),), ())
    tables = EmbeddingTables(schema, 4, EmbeddingOptions("unified", rows=1000, lookups=2))
    expected = [
        1 + _splitmix(identity + (xxhash.xxh64_intdigest(b"item", seed=i) & (2**63 - 1))) % 999
        for i in range(2)
    ]
    assert tables.locate(torch.tensor([identity]), torch.tensor([0]))[0].tolist() == expected


def test_one_matrix_tells_features_and_ids_apart() -> None:
    """Unified: equal ids of two features, and ids that collide once, get vectors of their own."""
    schema = FeatureSchema((CategoricalField("a", 2000), CategoricalField("b", 2000)), ())
    tables = EmbeddingTables(schema, 8, EmbeddingOptions("unified", rows=500, lookups=2))
    ids = torch.arange(1, 2000)[:, None].expand(-1, 2)
    rows = tables.locate(ids, slice(0, 2))
    assert (rows[:, 0] != rows[:, 1]).any(-1).float().mean() > 0.99
    pairs = {tuple(r) for r in rows[:, 0].tolist()}
    assert len(pairs) > 0.98 * 1999  # one look-up alone has at most 499 rows to give
    assert rows.unique().numel() == 499


def test_a_history_shares_its_fields_table_unless_it_has_its_own() -> None:
    shared, own = EmbeddingTables(SCHEMA, 4), EmbeddingTables(SCHEMA, 4, own_history=True)
    batch = _batch()
    field = shared.lookup(shared.locate(batch.categorical, slice(0, 2)))[:, 1]
    as_history = batch._replace(
        histories={"clicked": batch.categorical[:, 1:], "followed": batch.categorical[:, :1]}
    )
    assert torch.equal(shared.sequence(as_history).tokens[:, 0], field)
    assert own.rows - shared.rows == 8 + 11
    assert not torch.allclose(own.sequence(as_history).tokens[:, 0], own(as_history)[:, 1])


@every_storage
def test_sparse_gradients_equal_dense_ones(options: EmbeddingOptions) -> None:
    batch, grads = _batch(), []
    for sparse in (False, True):
        torch.manual_seed(0)
        tables = EmbeddingTables(SCHEMA, 4, options)
        tables.table.sparse = sparse
        (tables(batch).square().sum() + tables.sequence(batch).tokens.sum()).backward()
        grad = tables.table.weight.grad
        assert grad is not None
        assert grad.is_sparse == sparse
        grads.append(grad.to_dense() if sparse else grad)
    torch.testing.assert_close(*grads)
    with pytest.raises(ValueError, match="dense gradients"):
        tables.penalty()


@every_storage
def test_rows_do_not_mix(options: EmbeddingOptions) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch()
    together = tables(batch)
    for i in range(5):
        alone = TableBatch(
            batch.categorical[i : i + 1], batch.dense[i : i + 1],
            {k: v[i : i + 1] for k, v in batch.bags.items()},
            {k: v[i : i + 1] for k, v in batch.histories.items()},
        )  # fmt: skip
        torch.testing.assert_close(tables(alone), together[i : i + 1])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"bags": (Bag("item", 3),)}, "declared twice"),
    ({"histories": (History("h", "nothing"),)}, "no categorical field"),
]


@pytest.mark.parametrize(("parts", "message"), WRONG)
def test_a_wrong_schema_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSchema((CategoricalField("item", 5),), ("click",), **parts)


def test_a_width_that_lookups_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        EmbeddingTables(SCHEMA, 5, EmbeddingOptions("unified", rows=9, lookups=2))
