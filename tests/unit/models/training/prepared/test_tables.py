"""Training on a table: what can be learned is learned, the test part is not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.errors import DataError
from models.data.tables import BagField, Field, FieldTable, HistoryField
from models.training.loop import LoopConfig
from models.training.metrics import auc
from models.training.prepared.tables import (
    RankerSpec,
    TableTensors,
    digest,
    evaluate,
    evaluation_of,
    mean_auc,
    one_hot_scores,
    predict,
    schema_of,
    train,
    without_unseen,
)

SIZES = {"width": 8, "units": 16, "tower": (8,)}
LOOP = LoopConfig(6, 128, 1e-2, patience=6)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other are slower than one on these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _table(rows: int = 3000, seed: int = 0) -> FieldTable:
    """Clicks by the user's and the item's class alike; likes, of clicks only, by a number."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 6, rows), rng.integers(0, 8, rows)
    price = rng.normal(5, 3, rows).astype(np.float32)
    click = rng.random(rows) < np.where(user % 2 == item % 2, 0.9, 0.1)
    like = click & (rng.random(rows) < np.where(price > 5, 0.9, 0.1))
    split = np.repeat([0, 1, 2], [rows - 1000, 400, 600]).astype(np.int8)
    return FieldTable(
        "toy",
        (Field("user", 7, "user"), Field("item", 9, "item")),
        np.stack([user + 1, item + 1], axis=1).astype(np.int32),
        ("price",),
        price[:, None],
        ("click", "like"),
        np.stack([click, like], axis=1).astype(np.float32),
        np.stack([np.ones(rows, bool), click], axis=1),
        user.astype(np.int32),
        np.arange(rows, dtype=np.int64),
        split,
        {"tags": BagField(rng.integers(0, 5, (rows, 3)).astype(np.int32), 5, "item")},
        {"past": HistoryField(np.sort(rng.integers(0, 9, (rows, 4)))[:, ::-1].astype(np.int32),
                              "item")},
    ).check()  # fmt: skip


@pytest.fixture(scope="module")
def data() -> TableTensors:
    return TableTensors(_table())


def test_the_schema_is_that_of_the_table(data: TableTensors) -> None:
    schema = schema_of(data.table)
    found = {
        kind: [(i.name, i.side, i.size) for i in schema.of(kind)]
        for kind in ("id", "number", "bag", "history", "pool")
    }
    assert found == {
        "id": [("user", "user", 7), ("item", "row", 9)],
        "number": [("price", "row", 0)],
        "bag": [("tags", "row", 5)],
        "history": [("past", "user", 9)],
        "pool": [("past (mean)", "user", 0)],
    }
    assert [(h.table, h.types) for h in schema.histories] == [("item", 1)]
    assert [(p.of, p.only) for p in schema.of("pool")] == [("past", ())]
    assert schema.tasks == ("click", "like")


def test_a_batch_is_the_tables_rows(data: TableTensors) -> None:
    index, table = np.array([7, 3, 2999]), data.table
    batch = data.batch(index)
    users, rows = batch
    np.testing.assert_array_equal(users.ids.numpy(), table.categorical[index, :1])
    np.testing.assert_array_equal(rows.ids.numpy(), table.categorical[index, 1:])
    np.testing.assert_array_equal(rows.lists["tags"].numpy(), table.bags["tags"].ids[index])
    np.testing.assert_array_equal(users.lists["past"].numpy(), table.history["past"].ids[index])
    assert (users.lists.keys(), rows.lists.keys()) == ({"past"}, {"tags"})
    train_rows = table.dense[table.split == 0]
    expected = (table.dense[index] - train_rows.mean()) / train_rows.std()
    np.testing.assert_allclose(rows.numbers.numpy(), expected, rtol=1e-4)
    assert users.numbers.shape == (3, 0)
    labels, known = data.labels(index)
    np.testing.assert_array_equal(labels.numpy(), table.labels[index])
    np.testing.assert_array_equal(known.numpy(), table.known[index])
    newest = TableTensors(table, history=2).batch(index).users.lists["past"]
    np.testing.assert_array_equal(newest.numpy(), table.history["past"].ids[index, :2])


def test_a_pair_of_fields_and_a_number_are_learned(data: TableTensors) -> None:
    """The best possible AUC of both tasks is .9; a model that crosses nothing has about .5."""
    found = evaluate(train(data, RankerSpec("masknet", SIZES, loop=LOOP), 0)[0], data).metrics
    assert found["click auc"] > 0.7
    assert found["like auc"] > 0.7
    linear, _ = train(data, RankerSpec("logistic_regression", loop=LOOP), 0)
    found = evaluate(linear, data).metrics
    assert found["click auc"] < 0.6
    assert found["like auc"] > 0.7


def test_the_same_seed_gives_the_same_model(data: TableTensors) -> None:
    spec = RankerSpec("dnn", {"width": 4, "dropout": 0.2}, loop=replace(LOOP, epochs=1))
    rows = data.rows("test")
    one, same, other = (predict(train(data, spec, s)[0], data, rows) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_test_part_is_not_looked_at(data: TableTensors) -> None:
    """With other labels and inputs in it, training gives the same weights."""
    table = data.table
    test = table.split == 2
    changed = replace(
        table,
        labels=np.where(test[:, None], 1 - table.labels, table.labels),
        dense=np.where(test[:, None], 99, table.dense).astype(np.float32),
    )
    spec = RankerSpec("fm", {"width": 4}, loop=replace(LOOP, epochs=2))
    one, two = (train(d, spec, 0)[0].state_dict() for d in (data, TableTensors(changed)))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_unknown_labels_are_not_scored(data: TableTensors) -> None:
    table, rows = data.table, data.rows("test")
    scores = np.random.default_rng(1).random((len(rows), 2))
    found = evaluation_of(table, rows, scores)
    known = table.known[rows, 1]
    assert found.metrics["like auc"] == pytest.approx(auc(table.labels[rows[known], 1],
                                                          scores[known, 1]))  # fmt: skip
    assert list(found.metrics)[:2] == ["click auc", "like auc"]
    users = len(np.unique(table.user[rows]))
    assert {len(v) for v in found.per_unit.values()} == {users}
    for name, values in found.per_unit.items():
        assert np.nanmean(values) == pytest.approx(found.metrics[name])


def test_validation_of_one_class_is_refused() -> None:
    labels = np.array([[1.0], [1.0]])
    with pytest.raises(DataError, match="one class"):
        mean_auc(labels, labels > 0, labels)


def test_one_hot_regression_is_that_of_separate_sums() -> None:
    """Fields without interaction: the odds of the cells multiply, an unknown id adds nothing."""
    rng = np.random.default_rng(0)
    table = _table(2500)
    a, b = table.categorical.T
    logit = (a % 2) * 2.0 - (b % 3 == 0) * 1.5
    labels = (rng.random(len(a)) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    table = replace(table, tasks=("click",), labels=labels[:, None],
                    known=np.ones((len(a), 1), bool))  # fmt: skip
    rows = table.rows("test")
    scores = one_hot_scores(table, rows, strength=10.0)[:, 0]
    assert np.corrcoef(np.log(scores / (1 - scores)), logit[rows])[0, 1] > 0.95
    unknown = replace(table, categorical=np.where(table.split[:, None] == 2, 0, table.categorical))
    assert np.ptp(one_hot_scores(unknown, rows)) == 0


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4))
def test_every_id_that_is_left_was_trained(seed: int, rows: int, history: int) -> None:
    """Each id of any part occurs in a training row; the others are 0, and what was trained stays as
    it is, in its order."""
    table = _table(1100, seed).take(np.arange(100 - rows, 1100))
    table = replace(table, known=np.ones_like(table.known))
    train_rows = table.rows("train")
    assert len(train_rows) == rows
    found = without_unseen(table, history).check()
    past = table.history["past"].ids[:, :history]
    seen = {
        "user": set(table.categorical[train_rows, 0]),
        "item": set(table.categorical[train_rows, 1]) | set(past[train_rows].ravel()),
        "tags": set(table.bags["tags"].ids[train_rows].ravel()),
    }
    for column, name in enumerate(("user", "item")):
        before = table.categorical[:, column]
        expected = np.where(np.isin(before, list(seen[name])), before, 0)
        np.testing.assert_array_equal(found.categorical[:, column], expected)
    for before, after, of in (
        (past, found.history["past"].ids, seen["item"]),
        (table.bags["tags"].ids, found.bags["tags"].ids, seen["tags"]),
    ):
        assert after.shape == before.shape
        for one, other in zip(before[-150:], after[-150:], strict=True):
            kept = [i for i in one if i and i in of]
            assert list(other) == kept + [0] * (len(one) - len(kept))


def test_rows_without_a_known_label_train_nothing() -> None:
    table = _table(1003)
    known = table.known.copy()
    known[0] = False
    categorical = np.full_like(table.categorical, 1)
    categorical[0] = categorical[-1] = 2
    found = without_unseen(replace(table, known=known, categorical=categorical))
    assert not found.categorical[[0, -1], 0].any()


def _changed(table: FieldTable) -> dict[str, FieldTable]:
    """The table with one number, in one array, in the last row changed."""
    found = {}
    for name in ("categorical", "dense", "labels", "known", "user", "split"):
        array = getattr(table, name).copy()
        last = (-1,) if array.ndim == 1 else (-1, -1)
        array[last] = 1 - array[last] if array.dtype != bool else ~array[last]
        change: dict[str, Any] = {name: array}
        found[name] = replace(table, **change)
    bag, past = table.bags["tags"], table.history["past"]
    found["bag"] = replace(table, bags={"tags": replace(bag, ids=bag.ids[:, ::-1])})
    found["history"] = replace(table, history={"past": replace(past, ids=past.ids[:, ::-1])})
    found["vocabulary"] = replace(table, bags={"tags": replace(bag, vocabulary=6)})
    return found


def test_the_digest_is_that_of_all_that_is_read() -> None:
    table = _table(1200)
    copy = table.take(np.arange(len(table)))
    assert digest(copy) == digest(table)
    digests = {name: digest(changed) for name, changed in _changed(table).items()}
    assert len({digest(table), *digests.values()}) == 1 + len(digests)


def test_a_document_holds_the_settings_that_were_not_set() -> None:
    document = RankerSpec("fm").document()
    assert document["settings"] == {"width": 16}
    assert RankerSpec("fm", {"width": 16}).document() == document
