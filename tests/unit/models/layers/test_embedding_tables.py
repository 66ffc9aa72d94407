"""Embedding tables: padding and unknown ids add nothing, rows are where the schema says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.embedding_tables import Candidates, EmbeddingOptions, EmbeddingTables, Features
from models.schema.inputs import KINDS, SIDES, FeatureSchema, Input, Side

SCHEMA = FeatureSchema(
    (
        Input(name="user", size=9, side="user"),
        Input(name="gender", size=4, side="user"),
        Input(name="age", kind="number", side="user"),
        Input(name="hour", size=5),
        Input(name="price", kind="number"),
        Input(name="item", side="item", size=12),
        Input(name="weight", kind="number", side="item"),
        Input(name="tags", kind="bag", side="item", size=6),
        Input(name="words", kind="bag", size=7, pooling="sum"),
        Input(name="interests", kind="bag", side="user", size=6, table="tags"),
        Input(name="affinity", kind="weights", side="user", size=6, table="tags"),
        Input(name="mood", kind="weights", side="user", size=3),
        Input(name="shown", kind="vector", side="user", size=2),
        Input(name="image", kind="vector", side="item", size=3),
        Input(name="chosen", kind="history", side="user", size=12, table="item", types=3),
        Input(name="followed", kind="history", side="user", size=9, table="user"),
        Input(name="all", kind="pool", side="user", of="chosen"),
        Input(name="liked", kind="pool", side="user", of="chosen", only=(0, 2)),
        Input(name="friends", kind="pool", side="user", of="followed"),
    ),
    ("click",),
)
OF_SIDE = {
    "user": ["user", "gender", "age", "interests", "affinity", "mood", "shown", "all", "liked",
             "friends"],
    "item": ["item", "weight", "tags", "image"],
    "row": ["hour", "price", "words"],
}  # fmt: skip
STORAGES = [
    EmbeddingOptions(),
    EmbeddingOptions("hashed", rows=5),
    EmbeddingOptions("unified", rows=40, lookups=2),
    EmbeddingOptions("unified", rows=40, lookups=1),
]
every_storage = pytest.mark.parametrize(
    "options", STORAGES, ids=lambda o: f"{o.storage}-{o.lookups}"
)


def _batch(rows: int = 5, length: int = 4, seed: int = 0) -> dict[Side, Features]:
    g = torch.Generator().manual_seed(seed)

    def ids(below: int, many: int = length) -> Tensor:
        return torch.randint(0, below, (rows, many), generator=g)

    def numbers(many: int) -> Tensor:
        return torch.randn(rows, many, generator=g)

    users = Features(
        torch.cat([ids(9, 1), ids(4, 1)], dim=1),
        numbers(1),
        {
            "interests": ids(6), "affinity": numbers(6), "mood": numbers(3), "shown": numbers(2),
            "chosen": ids(12), "followed": ids(9),
        },
        {"chosen": ids(3)},
    )  # fmt: skip
    lists = {"tags": ids(6), "image": numbers(3)}
    return {
        "user": users,
        "item": Features(ids(12, 1), numbers(1), lists, {}),
        "row": Features(ids(5, 1), numbers(1), {"words": ids(7)}, {}),
    }


def _fields(tables: EmbeddingTables, batch: dict[Side, Features]) -> Tensor:
    """Those of all sides."""
    return torch.cat([tables(batch[side], side) for side in SIDES], dim=1)


def _padded(batch: dict[Side, Features], extra: int) -> dict[Side, Features]:
    def more(ids: Tensor) -> Tensor:
        return torch.cat([ids, torch.zeros(len(ids), extra, dtype=ids.dtype)], dim=1)

    return {
        side: each._replace(
            lists={k: v if v.is_floating_point() else more(v) for k, v in each.lists.items()},
            types={k: more(v) for k, v in each.types.items()},
        )
        for side, each in batch.items()
    }


def _vector(tables: EmbeddingTables, name: str, identity: int) -> Tensor:
    """The embedding of an id of a vocabulary, row by row."""
    feature = list(tables._feature).index(name)
    rows = tables.locate(torch.tensor([identity]), torch.tensor([feature]))[0]
    return torch.cat([tables.table.weight[row] for row in rows])[: tables.width]


def _expected(tables: EmbeddingTables, batch: dict[Side, Features], i: int) -> dict[str, Tensor]:
    """By hand, the fields of row i."""
    users, items, rows = (batch[side] for side in SIDES)

    def pooled(ids: Tensor, name: str, pooling: str = "mean") -> Tensor:
        kept = [int(v) for v in ids if v]
        total = sum((_vector(tables, name, v) for v in kept), torch.zeros(tables.width))
        return total if pooling == "sum" else total / max(len(kept), 1)

    def weighted(values: Tensor, name: str) -> Tensor:
        parts = (values[v] * _vector(tables, name, v) for v in range(1, len(values)))
        return sum(parts, torch.zeros(tables.width))

    maps: Any = tables.vector_maps
    chosen, types = users.lists["chosen"][i], users.types["chosen"][i]
    return {
        "user": _vector(tables, "user", int(users.ids[i, 0])),
        "gender": _vector(tables, "gender", int(users.ids[i, 1])),
        "age": users.numbers[i, 0] * tables.number_weight[0],
        "item": _vector(tables, "item", int(items.ids[i, 0])),
        "weight": items.numbers[i, 0] * tables.number_weight[1],
        "tags": pooled(items.lists["tags"][i], "tags"),
        "image": maps[1].weight @ items.lists["image"][i],
        "hour": _vector(tables, "hour", int(rows.ids[i, 0])),
        "price": rows.numbers[i, 0] * tables.number_weight[2],
        "words": pooled(rows.lists["words"][i], "words", "sum"),
        "interests": pooled(users.lists["interests"][i], "tags"),
        "affinity": weighted(users.lists["affinity"][i], "tags"),
        "mood": weighted(users.lists["mood"][i], "mood"),
        "shown": maps[0].weight @ users.lists["shown"][i],
        "all": pooled(chosen, "item"),
        "liked": pooled(chosen * ((types == 0) | (types == 2)), "item"),
        "friends": pooled(users.lists["followed"][i], "user"),
    }


@every_storage
def test_fields_are_what_a_lookup_by_hand_gives(options: EmbeddingOptions) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch()
    assert SCHEMA.fields() == sum(len(names) for names in OF_SIDE.values())
    for side in SIDES:
        fields = tables(batch[side], side)
        assert fields.shape == (5, SCHEMA.fields(side), 4)
        order = [each.name for kind in KINDS for each in SCHEMA.of(kind, side)]
        assert order == OF_SIDE[side]
        for i in range(5):
            expected = _expected(tables, batch, i)
            torch.testing.assert_close(
                fields[i], torch.stack([expected[name] for name in OF_SIDE[side]])
            )


@every_storage
@settings(max_examples=20)
@given(extra=st.integers(1, 6), seed=st.integers(0, 50))
def test_padding_and_unknown_ids_never_leak(
    options: EmbeddingOptions, extra: int, seed: int
) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch(seed=seed)
    torch.testing.assert_close(_fields(tables, _padded(batch, extra)), _fields(tables, batch))
    nothing: dict[Side, Features] = {
        side: Features(
            torch.zeros_like(each.ids),
            torch.zeros_like(each.numbers),
            {k: torch.zeros_like(v) for k, v in each.lists.items()},
            each.types,
        )
        for side, each in batch.items()
    }
    assert not _fields(tables, nothing).any()
    items = tables.sequence(batch["user"])
    ids = [batch["user"].lists[name] for name in ("chosen", "followed")]
    assert torch.equal(items.keep, torch.cat(ids, dim=1) > 0)
    assert not items.tokens[~items.keep].any()
    (_fields(tables, batch).sum() + items.tokens.sum()).backward()
    grad = tables.table.weight.grad
    assert grad is not None
    assert not grad[0].any()


@every_storage
def test_what_an_affinity_gives_to_no_value_adds_nothing(options: EmbeddingOptions) -> None:
    tables, users = EmbeddingTables(SCHEMA, 4, options), _batch()["user"]
    other = {**users.lists, "affinity": users.lists["affinity"].clone()}
    other["affinity"][:, 0] += 5
    assert torch.equal(tables(users._replace(lists=other), "user"), tables(users, "user"))


def test_a_pool_is_of_the_entries_of_its_types() -> None:
    tables, users = EmbeddingTables(SCHEMA, 4), _batch()["user"]
    place = OF_SIDE["user"].index("liked")
    before = tables(users, "user")[:, place]
    ids, types = users.lists["chosen"], users.types["chosen"]
    changed = torch.where(types == 1, (ids + 1) % 12, ids)
    same = users._replace(lists={**users.lists, "chosen": changed})
    assert torch.equal(tables(same, "user")[:, place], before)
    alone = users._replace(types={"chosen": torch.ones_like(types)})
    assert not tables(alone, "user")[:, place].any()


def test_types_are_numbered_through_all_histories() -> None:
    tables, users = EmbeddingTables(SCHEMA, 4), _batch()["user"]
    expected = torch.cat([users.types["chosen"], torch.full((5, 4), 3)], dim=1)
    assert torch.equal(tables.sequence(users).types, expected)
    (followed,) = (h for h in SCHEMA.histories if h.name == "followed")
    of_one = tables.sequence(users, (followed,))
    assert not of_one.types.any()
    assert torch.equal(of_one.tokens, tables.sequence(users).tokens[:, 4:])


@every_storage
def test_training_leaves_the_unknown_row_at_zero(options: EmbeddingOptions) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch()
    optimizer = torch.optim.AdamW(tables.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (_fields(tables, batch).square().sum() + 0.1 * tables.penalty()).backward()
        optimizer.step()
    assert not tables.table.weight[0].any()


def test_every_id_of_every_feature_has_a_row_of_its_own() -> None:
    tables = EmbeddingTables(SCHEMA, 4)
    rows = [
        int(tables.locate(torch.tensor([i]), torch.tensor([f])))
        for f, size in enumerate((9, 4, 5, 12, 6, 7, 3))
        for i in range(1, size)
    ]
    assert sorted(rows) == list(range(1, tables.rows))


@settings(max_examples=30)
@given(ids=st.lists(st.integers(1, 10**9), min_size=1, max_size=30), rows=st.integers(1, 50))
def test_hashed_ids_stay_in_the_range_of_their_feature(ids: list[int], rows: int) -> None:
    schema = FeatureSchema((Input(name="a", size=10**9 + 1), Input(name="b", size=10**9 + 1)))
    tables = EmbeddingTables(schema, 2, EmbeddingOptions("hashed", rows=rows))
    assert tables.rows == 1 + 2 * rows
    found = tables.locate(torch.tensor([[i, i] for i in ids]), slice(0, 2))[..., 0]
    assert ((found[:, 0] >= 1) & (found[:, 0] <= rows)).all()
    assert ((found[:, 1] > rows) & (found[:, 1] <= 2 * rows)).all()


def test_small_vocabularies_are_not_hashed() -> None:
    exact = EmbeddingTables(SCHEMA, 4)
    hashed = EmbeddingTables(SCHEMA, 4, EmbeddingOptions("hashed", rows=11))
    ids = torch.tensor([[0, 0], [1, 1], [4, 11]])
    assert torch.equal(
        hashed.locate(ids, slice(2, 4)), exact.locate(ids, slice(2, 4))
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
    schema = FeatureSchema((Input(name="item", size=2**31),))
    tables = EmbeddingTables(schema, 4, EmbeddingOptions("unified", rows=1000, lookups=2))
    expected = [
        1 + _splitmix(identity + (xxhash.xxh64_intdigest(b"item", seed=i) & (2**63 - 1))) % 999
        for i in range(2)
    ]
    assert tables.locate(torch.tensor([identity]), torch.tensor([0]))[0].tolist() == expected


def test_one_matrix_tells_features_and_ids_apart() -> None:
    """Unified: equal ids of two features, and ids that collide once, get vectors of their own."""
    schema = FeatureSchema((Input(name="a", size=2000), Input(name="b", size=2000)))
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
    lists = {"chosen": batch["item"].ids[:, :1], "followed": batch["user"].ids[:, :1]}
    users = batch["user"]._replace(
        lists={**batch["user"].lists, **lists}, types={"chosen": torch.zeros(5, 1)}
    )
    places: dict[Side, int] = {"item": 0, "user": 1}
    for side, place in places.items():
        field = shared(batch[side], side)[:, 0]
        assert torch.equal(shared.sequence(users).tokens[:, place], field)
        assert not torch.allclose(
            own.sequence(users).tokens[:, place],
            own(batch[side], side)[:, 0],
        )
    assert own.rows - shared.rows == 8 + 11


def test_fields_of_one_table_have_one_embedding() -> None:
    """What a user is interested in and what an item has are the same values."""
    tables, batch = EmbeddingTables(SCHEMA, 4), _batch()
    ids = batch["item"].lists["tags"]
    users = batch["user"]._replace(lists={**batch["user"].lists, "interests": ids})
    of_user = tables(users, "user")[:, OF_SIDE["user"].index("interests")]
    of_item = tables(batch["item"], "item")[:, OF_SIDE["item"].index("tags")]
    assert torch.equal(of_user, of_item)
    assert tables.rows == 1 + 8 + 3 + 11 + 4 + 5 + 6 + 2


@every_storage
def test_sparse_gradients_equal_dense_ones(options: EmbeddingOptions) -> None:
    batch, grads = _batch(), []
    for sparse in (False, True):
        torch.manual_seed(0)
        tables = EmbeddingTables(SCHEMA, 4, options)
        tables.table.sparse = sparse
        tokens = tables.sequence(batch["user"]).tokens
        (_fields(tables, batch).square().sum() + tokens.sum()).backward()
        grad = tables.table.weight.grad
        assert grad is not None
        assert grad.is_sparse == sparse
        grads.append(grad.to_dense() if sparse else grad)
    torch.testing.assert_close(*grads)
    with pytest.raises(ValueError, match="dense gradients"):
        tables.penalty()


@every_storage
def test_fields_of_candidates_are_those_of_their_items_and_their_own(
    options: EmbeddingOptions,
) -> None:
    """Whether items are embedded with each row or once, for serving."""
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch()
    expected = torch.cat([tables(batch["item"], "item"), tables(batch["row"], "row")], dim=1)
    assert torch.equal(tables.candidates(Candidates(batch["item"], batch["row"])), expected)
    kept = tables.state_dict()
    tables.remember(lambda rows: batch["item"].take(rows), np.arange(5), 5)
    for chosen in (torch.arange(5), torch.tensor([3, 3, 0])):
        rows = Candidates(chosen, batch["row"].take(chosen))
        assert torch.equal(tables.candidates(rows), expected[chosen])
    assert list(tables.state_dict()) == list(kept)  # what is remembered is not saved


def test_candidates_may_have_nothing_of_their_own_or_of_their_item() -> None:
    batch = _batch()
    for side in ("item", "row"):
        inputs = tuple(each for each in SCHEMA.inputs if each.side == side)
        tables = EmbeddingTables(FeatureSchema(inputs), 4)
        rows = Candidates(batch["item"], batch["row"])
        assert torch.equal(tables.candidates(rows), tables(batch[side], side))


@every_storage
def test_rows_do_not_mix(options: EmbeddingOptions) -> None:
    tables, batch = EmbeddingTables(SCHEMA, 4, options), _batch()
    for side in SIDES:
        together = tables(batch[side], side)
        for i in range(5):
            one = slice(i, i + 1)
            torch.testing.assert_close(tables(batch[side].take(one), side), together[one])


def test_the_weights_start_with_the_asked_spread() -> None:
    schema = FeatureSchema((Input(name="item", size=2000), Input(name="price", kind="number")))
    for std in (0.01, 0.05):
        tables = EmbeddingTables(schema, 8, EmbeddingOptions(init_std=std))
        assert float(tables.table.weight[1:].detach().std()) == pytest.approx(std, rel=0.05)
        assert not tables.table.weight[0].any()


ITEM = Input(name="item", size=5)
OF_ITEM = Input(name="tags", kind="bag", size=5, table="item")
WRONG: list[tuple[tuple[Input, ...], str]] = [
    ((ITEM, Input(name="item", kind="bag", size=3)), "declared twice"),
    ((Input(name="h", kind="history", size=5, table="nothing"),), "which is no field"),
    ((ITEM, OF_ITEM, Input(name="h", kind="history", size=5, table="tags")), "which is no field"),
    ((ITEM, Input(name="mean", kind="pool", of="item")), "no history"),
    ((Input(name="mean", kind="pool", of="nothing"),), "no history"),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG)
def test_a_wrong_schema_is_refused(inputs: tuple[Input, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSchema(inputs, ("click",))


def test_a_table_without_a_known_id_is_refused() -> None:
    with pytest.raises(ValueError, match="no row for any known id"):
        EmbeddingTables(FeatureSchema((Input(name="item", size=1),)), 4)


def test_a_width_that_lookups_do_not_divide_has_a_shorter_last_part() -> None:
    tables, batch = (
        EmbeddingTables(SCHEMA, 5, EmbeddingOptions("unified", rows=9, lookups=2)),
        _batch(),
    )
    assert tables.table.weight.shape == (9, 3)
    for side in SIDES:
        fields = tables(batch[side], side)
        assert fields.shape == (5, SCHEMA.fields(side), 5)
        for i in range(5):
            expected = _expected(tables, batch, i)
            torch.testing.assert_close(
                fields[i], torch.stack([expected[name] for name in OF_SIDE[side]])
            )
