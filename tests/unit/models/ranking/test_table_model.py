"""Ranking models over prepared tables: published sizes, and the laws of tables' rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import registry
from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.split_linear import EVERY
from models.ranking.model import NOTHING, TableBatch, TableRanker
from models.schema.inputs import FeatureSchema, Input
from tests.unit.models.ranking.worlds import NAMES, SMALL, plain, spread

SCHEMA = FeatureSchema(
    (
        Input(name="user", size=9, side="user"),
        Input(name="item", size=12),
        Input(name="hour", size=25),
        Input(name="price", kind="number"),
        Input(name="tags", kind="bag", size=6),
        Input(name="clicked", kind="history", side="user", size=12, table="item"),
        Input(name="liked", kind="history", side="user", size=12, table="item"),
        Input(name="followed", kind="history", side="user", size=9, table="user"),
        *(
            Input(name=f"mean of {name}", kind="pool", side="user", of=name)
            for name in ("clicked", "liked", "followed")
        ),
    ),
    ("click", "like", "long_view"),
)
every_model = pytest.mark.parametrize("model", NAMES)


def _ready(model: str, options: EmbeddingOptions | None = None, **settings: Any) -> TableRanker:
    torch.manual_seed(0)
    ranker = registry.kind_of(model).table_ranker(SCHEMA, SMALL[model] | settings, options)
    return spread(ranker).eval()


def _batch(rows: int = 6, length: int = 4, seed: int = 0) -> TableBatch:
    g = torch.Generator().manual_seed(seed)

    def ids(below: int, many: int = length) -> Tensor:
        return torch.randint(0, below, (rows, many), generator=g)

    histories = {"clicked": ids(12), "liked": ids(12), "followed": ids(9)}
    for history in histories.values():
        history[-1] = 0  # the last row has none
    own = torch.cat([ids(12, 1), ids(25, 1)], dim=1)
    return TableBatch(
        Features(ids(9, 1), torch.zeros(rows, 0), histories, {}),
        Features(own, torch.randn(rows, 1, generator=g), {"tags": ids(6)}, {}),
    )


def _schema(fields: int, histories: int = 0, tasks: int = 1) -> FeatureSchema:
    return FeatureSchema(
        (
            *(Input(name=f"f{i}", size=50) for i in range(fields)),
            *(
                Input(name=f"h{i}", kind="history", side="user", size=50, table="f0")
                for i in range(histories)
            ),
        ),
        tuple(f"t{i}" for i in range(tasks)),
    )


HARNESS_HEAD = {"tower": (256, 128, 64, 32)}
MASKNET = {"width": 10, "reduction": 2.0, "units": 400}
SERIAL: dict[str, Any] = {**MASKNET, "variant": "serial", "tower": ()}
PUBLISHED: list[tuple[str, FeatureSchema, dict[str, Any], int]] = [
    ("masknet", _schema(22), SERIAL, 1_599_901),
    ("masknet", _schema(39), SERIAL, 2_355_551),
    ("masknet", _schema(39), {**SERIAL, "reduction": 0.2}, 668_249),
    *(("masknet", _schema(39), {**MASKNET, "blocks": b, "tower": (400, 400, 400)}, n)
      for b, n in ((3, 3_101_491), (5, 4_954_231))),
    ("masknet", _schema(39, tasks=3), {**MASKNET, "tower": (256, 128)}, 3_321_333),
    *(("mlcc", _schema(39), {"channels": s}, n)
      for s, n in zip((1, 2, 3, 4), (305_893, 486_853, 667_813, 848_773), strict=True)),
    *(("mlcc", _schema(22), {"channels": s}, n)
      for s, n in zip((1, 2, 3, 4), (191_174, 293_254, 395_334, 497_414), strict=True)),
    *(("mlcc", _schema(17), {"channels": s, "dims": (2, 1)}, n)
      for s, n in zip((1, 2, 3, 4), (119_434, 160_234, 201_034, 241_834), strict=True)),
    ("mlcc", _schema(39), {"channels": 1, "channel_width": 64}, 2_746_981),
    ("mlcc", _schema(39), {"channels": 4, "channel_width": 4}, 204_805),
    ("infnet", _schema(36, 3, 3), {"prune_last_block": False}, 267_651),
    ("infnet", _schema(36, 3, 3), {"width": 64, "blocks": 4, "prune_last_block": False},
     1_201_667),
    ("infnet", _schema(89, 4, 3), {"prune_last_block": False}, 487_811),
    *(("dnn", _schema(f), {"hidden": (256, 128), "tower": (64, 32)}, n)
      for f, n in ((39, 203_265), (22, 133_633), (17, 113_153))),
    *(("dcn_v2", _schema(f), HARNESS_HEAD, n)
      for f, n in ((39, 1_087_905), (22, 451_969), (17, 321_249))),
]  # fmt: skip


@pytest.mark.parametrize(("model", "schema", "settings", "dense"), PUBLISHED)
def test_dense_parameters_equal_the_published_numbers(
    model: str, schema: FeatureSchema, settings: dict[str, Any], dense: int
) -> None:
    ranker = registry.kind_of(model).table_ranker(schema, settings)
    assert ranker.num_dense_parameters() == dense
    assert ranker.num_parameters() > dense


@every_model
def test_k_candidates_are_k_single_rows(model: str) -> None:
    ranker, batch = _ready(model), _batch()
    together = ranker(batch)
    assert together.shape == (6, 3)
    assert together.std(0).max() > 1e-2
    for i in range(6):
        one = slice(i, i + 1)
        alone = TableBatch(batch.users.take(one), batch.rows.take(one))
        torch.testing.assert_close(ranker(alone), together[one], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ranker.score(batch), torch.sigmoid(together))
    expected = plain(ranker.network, batch.users, EVERY, Candidates(NOTHING, batch.rows))
    torch.testing.assert_close(together, expected, atol=1e-3, rtol=1e-3)


@every_model
@settings(max_examples=5)
@given(extra=st.integers(1, 5), seed=st.integers(0, 20))
def test_padding_has_no_effect(model: str, extra: int, seed: int) -> None:
    ranker, batch = _ready(model), _batch(seed=seed)

    def more(features: Features) -> Features:
        padded = {
            name: torch.cat([ids, torch.zeros(len(ids), extra, dtype=ids.dtype)], dim=1)
            for name, ids in features.lists.items()
        }
        return features._replace(lists=padded)

    padded = TableBatch(more(batch.users), more(batch.rows))
    torch.testing.assert_close(ranker(padded), ranker(batch), atol=1e-3, rtol=1e-3)


@every_model
@pytest.mark.parametrize("storage", ["hashed", "unified"])
def test_every_model_takes_every_storage(model: str, storage: Any) -> None:
    ranker = _ready(model, EmbeddingOptions(storage, rows=7))
    assert ranker(_batch()).isfinite().all()


@every_model
def test_rows_without_history_learn_without_nan(model: str) -> None:
    ranker, batch = registry.kind_of(model).table_ranker(SCHEMA, SMALL[model]), _batch()
    labels = torch.ones(6, 3)
    ranker.loss(batch, labels, labels > 0).backward()
    grads = [p.grad for p in ranker.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


@every_model
def test_every_declared_input_reaches_the_logits(model: str) -> None:
    ranker, batch = _ready(model), _batch()
    users, rows, before = batch.users, batch.rows, ranker(batch)

    def later(features: Features, name: str, size: int) -> Features:
        changed = (features.lists[name] + 1) % size
        return features._replace(lists={**features.lists, name: changed})

    changed = {
        "user": TableBatch(users._replace(ids=(users.ids + 1) % 9), rows),
        "item": TableBatch(users, rows._replace(ids=(rows.ids + torch.tensor([1, 0])) % 12)),
        "price": TableBatch(users, rows._replace(numbers=rows.numbers + 1)),
        "tags": TableBatch(users, later(rows, "tags", 6)),
        "liked": TableBatch(later(users, "liked", 12), rows),
        "followed": TableBatch(later(users, "followed", 9), rows),
    }
    for name, other in changed.items():
        assert not torch.allclose(ranker(other), before), name


def test_unknown_labels_do_not_count() -> None:
    ranker, batch = _ready("dnn"), _batch()
    labels, known = torch.rand(6, 3).round(), torch.rand(6, 3) < 0.5
    other = torch.where(known, labels, 1 - labels)
    assert torch.equal(ranker.loss(batch, labels, known), ranker.loss(batch, other, known))


def test_the_l2_term_is_half_the_sum_of_squares_of_embeddings() -> None:
    batch, labels = _batch(), torch.ones(6, 3)
    plain_one = _ready("deepfm")
    decayed = registry.kind_of("deepfm").table_ranker(SCHEMA, SMALL["deepfm"], l2=0.1).eval()
    decayed.load_state_dict(plain_one.state_dict())
    squares = sum(
        float(p.detach().square().sum()) for n, p in plain_one.named_parameters() if "tables" in n
    )
    known = labels > 0
    loss, without = (each.loss(batch, labels, known).detach() for each in (decayed, plain_one))
    assert float(loss - without) == pytest.approx(0.05 * squares, rel=1e-3)


def test_masknet_without_masks_has_none_of_their_parameters() -> None:
    full, bare = (_ready("masknet", masked=flag) for flag in (True, False))
    masks = [p for n, p in full.named_parameters() if ".mask." in n]
    assert full.num_parameters() - bare.num_parameters() == sum(p.numel() for p in masks) > 0
    without = _ready("masknet", emb_norm="off", hidden_norm=False)
    assert not [n for n, _ in without.named_parameters() if "norm" in n]
    assert without(_batch()).isfinite().all()


@pytest.mark.parametrize("model", ["masknet", "dnn"])
def test_what_the_tasks_share_is_dropped_out_once(model: str) -> None:
    """MaskNet's blocks do it: a unit that is kept is divided by 1 - p and not by its square."""
    ranker = registry.kind_of(model).table_ranker(SCHEMA, SMALL[model] | {"dropout": 0.25})
    read: list[Tensor] = []
    head: Any = ranker.network.head
    head.towers.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    batch = _batch(rows=200)
    ranker.eval()(batch)
    ranker.train()(batch)
    whole, dropped = read
    torch.testing.assert_close(dropped, torch.where(dropped > 0, whole / 0.75, 0.0))
    assert float((dropped > 0).sum() / (whole > 0).sum()) == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    "switch", [{"task_tokens": False}, {"gated": False}, {"attention": "mean"}, {"residual": False}]
)
def test_infnets_ablations_have_fewer_parameters(switch: dict[str, Any]) -> None:
    full, less = _ready("infnet"), _ready("infnet", **switch)
    assert less.num_parameters() < full.num_parameters()


@every_model
def test_every_model_takes_a_table_without_histories(model: str) -> None:
    ranker = registry.kind_of(model).table_ranker(_schema(4, tasks=2), SMALL[model])
    ids, none = torch.randint(0, 50, (5, 4)), torch.zeros(5, 0)
    users = Features(none.long(), none, {}, {})
    assert ranker(TableBatch(users, Features(ids, none, {}, {}))).isfinite().all()


@every_model
def test_a_history_of_what_rows_do_not_have_is_read_by_its_mean_alone(model: str) -> None:
    """Nothing of a row can attend to it: `followed` is of users."""
    own = FeatureSchema(
        tuple(i for i in SCHEMA.inputs if "clicked" not in i.name and "liked" not in i.name),
        SCHEMA.tasks,
    )
    ranker, batch = registry.kind_of(model).table_ranker(own, SMALL[model]).eval(), _batch()
    assert ranker(batch).isfinite().all()


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(registry.UnknownModel, match="masknet"):
        registry.kind_of("masknett")
    with pytest.raises(ValueError, match="reduction"):
        registry.kind_of("masknet").table_ranker(SCHEMA, {"ratio": 2})
