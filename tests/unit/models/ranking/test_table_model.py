"""Ranking models over any table: published sizes, row independence, padding, the same networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.embedding_tables import (
    Bag,
    CategoricalField,
    EmbeddingOptions,
    FeatureSchema,
    History,
    TableBatch,
)
from models.ranking.table_model import TableRanker
from models.ranking.table_networks import NETWORKS
from tests.unit.models.ranking.worlds import spread

SCHEMA = FeatureSchema(
    (CategoricalField("user", 9), CategoricalField("item", 12), CategoricalField("hour", 25)),
    ("click", "like", "long_view"),
    ("price",),
    (Bag("tags", 6),),
    (History("clicked", "item"), History("liked", "item"), History("followed", "user")),
)
SMALL: dict[str, dict[str, Any]] = {
    "masknet": {"width": 4, "units": 8},
    "mlcc": {"channel_width": 4, "channels": 2, "tower": (8,)},
    "infnet": {"width": 8, "head": (6,)},
}
every_model = pytest.mark.parametrize("model", NETWORKS)


def _ready(model: str, options: EmbeddingOptions | None = None, **settings: Any) -> TableRanker:
    ranker = TableRanker(SCHEMA, model, SMALL.get(model, {}) | settings, options)
    spread(ranker)
    for tables in ranker._tables():
        with torch.no_grad():
            tables.table.weight[0] = 0
    return ranker.eval()


def _batch(rows: int = 6, length: int = 4, seed: int = 0) -> TableBatch:
    g = torch.Generator().manual_seed(seed)

    def ids(below: int) -> Tensor:
        return torch.randint(0, below, (rows, length), generator=g)

    one = [torch.randint(0, f.vocabulary, (rows,), generator=g) for f in SCHEMA.categorical]
    histories = {"clicked": ids(12), "liked": ids(12), "followed": ids(9)}
    for history in histories.values():
        history[-1] = 0  # the last row has none
    return TableBatch(
        torch.stack(one, 1), torch.randn(rows, 1, generator=g), {"tags": ids(6)}, histories
    )


def _take(batch: TableBatch, index: list[int]) -> TableBatch:
    return TableBatch(
        batch.categorical[index], batch.dense[index],
        {k: v[index] for k, v in batch.bags.items()},
        {k: v[index] for k, v in batch.histories.items()},
    )  # fmt: skip


def _schema(fields: int, histories: int = 0, tasks: int = 1) -> FeatureSchema:
    return FeatureSchema(
        tuple(CategoricalField(f"f{i}", 50) for i in range(fields)),
        tuple(f"t{i}" for i in range(tasks)),
        histories=tuple(History(f"h{i}", "f0") for i in range(histories)),
    )


HARNESS_HEAD = {"tower": (256, 128, 64, 32)}
PUBLISHED: list[tuple[str, FeatureSchema, dict[str, Any], int]] = [
    ("masknet", _schema(22), {"width": 10, "reduction": 2, "units": 400, "variant": "serial",
                              "tower": ()}, 1_599_901),
    ("masknet", _schema(39), {"width": 10, "reduction": 2, "units": 400, "variant": "serial",
                              "tower": ()}, 2_355_551),
    ("masknet", _schema(39), {"width": 10, "reduction": 0.2, "units": 400, "variant": "serial",
                              "tower": ()}, 668_249),
    *(("masknet", _schema(39), {"width": 10, "reduction": 2, "units": 400, "blocks": b,
                                "tower": (400, 400, 400)}, n)
      for b, n in ((3, 3_101_491), (5, 4_954_231))),
    ("masknet", _schema(39, tasks=3), {"width": 10, "reduction": 2, "units": 400,
                                       "tower": (256, 128)}, 3_321_333),
    *(("mlcc", _schema(39), {"channels": s}, n)
      for s, n in zip((1, 2, 3, 4), (305_893, 486_853, 667_813, 848_773), strict=True)),
    *(("mlcc", _schema(22), {"channels": s}, n)
      for s, n in zip((1, 2, 3, 4), (191_174, 293_254, 395_334, 497_414), strict=True)),
    *(("mlcc", _schema(17), {"channels": s, "dims": (2, 1)}, n)
      for s, n in zip((1, 2, 3, 4), (119_434, 160_234, 201_034, 241_834), strict=True)),
    ("mlcc", _schema(39), {"channels": 1, "channel_width": 64}, 2_746_981),
    ("mlcc", _schema(39), {"channels": 4, "channel_width": 4}, 204_805),
    ("infnet", _schema(36, 3, 3), {}, 267_651),
    ("infnet", _schema(36, 3, 3), {"width": 64, "blocks": 4}, 1_201_667),
    ("infnet", _schema(89, 4, 3), {}, 487_811),
    *(("dnn", _schema(f), {"hidden": (256, 128), "tower": (64, 32)}, n)
      for f, n in ((39, 203_265), (22, 133_633), (17, 113_153))),
    *(("dcn_v2", _schema(f), HARNESS_HEAD, n)
      for f, n in ((39, 1_087_905), (22, 451_969), (17, 321_249))),
]  # fmt: skip


@pytest.mark.parametrize(("model", "schema", "settings", "dense"), PUBLISHED)
def test_dense_parameters_equal_the_published_numbers(
    model: str, schema: FeatureSchema, settings: dict[str, Any], dense: int
) -> None:
    if model == "infnet":
        settings = settings | {"prune_last_block": False, "pool_histories": False}
    ranker = TableRanker(schema, model, settings)
    assert ranker.num_dense_parameters() == dense
    assert ranker.num_parameters() > dense


@every_model
def test_k_candidates_are_k_single_rows(model: str) -> None:
    ranker, batch = _ready(model), _batch()
    together = ranker(batch)
    assert together.shape == (6, 3)
    assert together.std(0).max() > 1e-2
    for i in range(6):
        torch.testing.assert_close(
            ranker(_take(batch, [i])), together[i : i + 1], atol=1e-4, rtol=1e-4
        )
    scores = ranker.score(batch)
    torch.testing.assert_close(scores, torch.sigmoid(together))


@every_model
@settings(max_examples=8)
@given(extra=st.integers(1, 5), seed=st.integers(0, 20))
def test_padding_has_no_effect(model: str, extra: int, seed: int) -> None:
    torch.manual_seed(0)
    ranker, batch = _ready(model), _batch(seed=seed)

    def more(ids: Tensor) -> Tensor:
        return torch.cat([ids, torch.zeros(len(ids), extra, dtype=ids.dtype)], dim=1)

    padded = batch._replace(
        bags={k: more(v) for k, v in batch.bags.items()},
        histories={k: more(v) for k, v in batch.histories.items()},
    )
    torch.testing.assert_close(ranker(padded), ranker(batch), atol=1e-4, rtol=1e-4)


@every_model
@pytest.mark.parametrize("storage", ["hashed", "unified"])
def test_every_model_takes_every_storage(model: str, storage: Any) -> None:
    ranker = _ready(model, EmbeddingOptions(storage, rows=7))
    assert ranker(_batch()).isfinite().all()


@every_model
def test_rows_without_history_learn_without_nan(model: str) -> None:
    ranker, batch = TableRanker(SCHEMA, model, SMALL.get(model, {})), _batch()
    labels = torch.ones(6, 3)
    ranker.loss(batch, labels, labels > 0).backward()
    grads = [p.grad for p in ranker.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


@every_model
def test_every_declared_input_reaches_the_logits(model: str) -> None:
    ranker, batch = _ready(model), _batch()
    before = ranker(batch)
    changed = {
        "user": batch._replace(categorical=(batch.categorical + torch.tensor([1, 0, 0])) % 9),
        "price": batch._replace(dense=batch.dense + 1),
        "tags": batch._replace(bags={"tags": (batch.bags["tags"] + 1) % 6}),
        "liked": batch._replace(
            histories={**batch.histories, "liked": (batch.histories["liked"] + 1) % 12}
        ),
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
    plain, decayed = _ready("deepfm"), TableRanker(SCHEMA, "deepfm", l2=0.1).eval()
    decayed.load_state_dict(plain.state_dict())
    squares = sum(
        float(p.detach().square().sum()) for n, p in plain.named_parameters() if "tables" in n
    )
    known = labels > 0
    difference = (decayed.loss(batch, labels, known) - plain.loss(batch, labels, known)).detach()
    assert float(difference) == pytest.approx(0.05 * squares, rel=1e-3)


def test_masknet_without_masks_has_none_of_their_parameters() -> None:
    full, plain = (_ready("masknet", masked=flag) for flag in (True, False))
    masks = [p for n, p in full.named_parameters() if ".mask." in n]
    assert full.num_parameters() - plain.num_parameters() == sum(p.numel() for p in masks) > 0
    bare = _ready("masknet", emb_norm="off", hidden_norm=False)
    assert not [n for n, _ in bare.named_parameters() if "norm" in n]
    assert bare(_batch()).isfinite().all()


def test_a_saved_masknet_that_says_whether_it_norms_embeddings_is_built_as_it_was() -> None:
    for said, form in ((True, "field"), (False, "off")):
        old = TableRanker(SCHEMA, "masknet", {"emb_norm": said})
        assert old.config() == TableRanker(SCHEMA, "masknet", {"emb_norm": form}).config()
        assert any("backbone.norm" in name for name in old.state_dict()) == said


@pytest.mark.parametrize("model", ["masknet", "dnn"])
def test_what_the_tasks_share_is_dropped_out_once(model: str) -> None:
    """MaskNet's blocks do it: a unit that is kept is divided by 1 - p and not by its square."""
    ranker = TableRanker(SCHEMA, model, SMALL.get(model, {}) | {"dropout": 0.25})
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
def test_infnets_ablations_still_read_their_row(switch: dict[str, Any]) -> None:
    full, less = _ready("infnet"), _ready("infnet", **switch)
    assert less.num_parameters() < full.num_parameters()
    logits = less(_batch())
    assert logits.shape == (6, 3)
    assert logits.std(0).max() > 1e-3  # a tower of six random units may be dead


def test_infnet_runs_on_a_table_without_histories() -> None:
    ranker = TableRanker(_schema(4, tasks=2), "infnet", SMALL["infnet"])
    ids = torch.randint(0, 50, (5, 4))
    assert ranker(TableBatch(ids, torch.zeros(5, 0), {}, {})).isfinite().all()
    with pytest.raises(ValueError, match="histories"):
        TableRanker(_schema(4), "din")


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="masknet"):
        TableRanker(SCHEMA, "masknett")
    with pytest.raises(ValueError, match="reduction"):
        TableRanker(SCHEMA, "masknet", {"ratio": 2})
