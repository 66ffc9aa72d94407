"""SSL two-tower: the laws of its masks, losses and vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import chisquare
from torch.nn import functional

from models.data.events import Dataset
from models.inputs import UserBatch
from models.layers.feature_mask import mask_sets, mutual_information, pairwise_information
from models.layers.in_batch_softmax import in_batch_softmax
from models.retrieval.ssl_two_tower import FIELDS, SSLTwoTower, SSLTwoTowerConfig, incidence
from tests.unit.models import synthetic
from tests.unit.models.users import nobody, some_users


@pytest.fixture(scope="module")
def data() -> Dataset:
    return synthetic.dataset(users=40)


def _model(data: Dataset, **changes: object) -> SSLTwoTower:
    torch.manual_seed(1)
    sizes = {"field_width": 8, "hidden": (16,), "width": 8} | changes
    config = SSLTwoTowerConfig(len(data.items), len(data.tag_vocabulary), **sizes)  # type: ignore[arg-type]
    model = SSLTwoTower(config)
    model.prepare_training(data.items, data.items.features["train_clicks"].astype(np.int64))
    return model


def test_mutual_information_by_hand() -> None:
    a = csr_matrix(np.eye(4))
    half = csr_matrix(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], float))
    assert mutual_information(a, half) == pytest.approx(np.log(2))
    assert mutual_information(half, csr_matrix(np.ones((4, 1)))) == pytest.approx(0)
    # A bag of both values: each pair weighs 1/2, so nothing is learned of `half`.
    assert mutual_information(half, csr_matrix(np.ones((4, 2)))) == pytest.approx(0)


def test_masks_hide_half_the_fields_and_never_choose_the_id_as_neighbour(data: Dataset) -> None:
    information = pairwise_information(incidence(data.items))
    hidden = mask_sets(information, id_field=0)
    assert (hidden.sum(1) == len(FIELDS) // 2).all()
    assert hidden.diagonal().all()
    assert not hidden[1:, 0].any()
    for seed in range(1, len(FIELDS)):
        others = [f for f in range(1, len(FIELDS)) if f != seed]
        best = max(others, key=lambda f, s=seed: information[s, f])
        assert hidden[seed, best]


def test_views_are_complementary_and_masked_fields_are_the_default(data: Dataset) -> None:
    model = _model(data, value_dropout=0.0)
    rows = torch.arange(1, len(data.items) + 1)
    whole = model.item_fields(rows)
    seeds = set()
    for draw in range(20):
        first, second = model.views(rows, torch.Generator().manual_seed(draw))
        for field in range(len(FIELDS)):
            shown, hidden = (first, second) if first[0, field].ne(model.default[field]).any() else (
                second, first,
            )  # fmt: skip
            assert torch.equal(hidden[:, field], model.default[field].expand(len(rows), -1))
            assert torch.equal(shown[:, field], whole[:, field])
        seeds.add(tuple(first[0].eq(model.default).all(1).tolist()))
    assert len(seeds) > 1, "the seed field changes from batch to batch"


def test_value_dropout_drops_values_of_bags_only(data: Dataset) -> None:
    model = _model(data)
    rows = torch.arange(1, len(data.items) + 1)
    all_dropped = model.item_fields(rows, 1.0, torch.Generator().manual_seed(0))
    whole = model.item_fields(rows)
    assert torch.equal(all_dropped[:, :2], whole[:, :2])
    assert torch.equal(all_dropped[:, 2:], model.default[2:].expand(len(rows), -1, -1))


def test_the_self_supervised_batch_is_uniform_over_the_catalogue(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, n = _model(data), len(data.items)
    drawn: list[torch.Tensor] = []
    views = model.views

    def recorded(
        rows: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(rows)
        return views(rows, generator)

    monkeypatch.setattr(model, "views", recorded)
    generator = torch.Generator().manual_seed(0)
    only_popular = torch.ones(500, dtype=torch.long)  # what is trained on must not matter
    with torch.no_grad():
        for _ in range(20):
            model.loss(some_users(500, n), only_popular, generator)
    counts = torch.bincount(torch.cat(drawn), minlength=n + 1).numpy()
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 0.001


def test_self_supervision_leaves_the_query_tower_alone(data: Dataset) -> None:
    model, n = _model(data), len(data.items)
    users, targets = some_users(16, n), torch.randint(1, n + 1, (16,))
    generator = torch.Generator().manual_seed(3)
    with_both = model.loss(users, targets, generator)
    main_only = _model(data, alpha=0.0).loss(users, targets, generator)
    (with_both - main_only).backward()
    assert model.id_table.weight.grad is not None
    grads = [p.grad.clone() for p in model.query_mlp.parameters() if p.grad is not None]
    model.zero_grad()
    in_batch = in_batch_softmax(
        model.encode_query(users),
        model.encode_fields(model.item_fields(targets)),
        targets,
        model.cfg.temperature,
        model.log_q[targets],
    )
    in_batch.backward()
    for grad, parameter in zip(grads, model.query_mlp.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_alpha_zero_is_the_in_batch_softmax_to_the_bit(data: Dataset) -> None:
    model, n = _model(data, alpha=0.0, logq_correction=False), len(data.items)
    users, targets = some_users(16, n), torch.randint(1, n + 1, (16,))
    expected = in_batch_softmax(
        model.encode_query(users),
        model.encode_fields(model.item_fields(targets)),
        targets,
        model.cfg.temperature,
    )
    assert torch.equal(model.loss(users, targets, torch.Generator()), expected)


def test_in_batch_softmax_by_definition_with_accidental_hits_masked() -> None:
    torch.manual_seed(0)
    q, x, ids = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([5, 6, 5, 7])
    log_q = torch.log(torch.tensor([0.4, 0.1, 0.4, 0.1]))
    logits = functional.cosine_similarity(q[:, None], x[None], dim=2) / 0.1 - log_q
    terms = []
    for i in range(4):
        columns = [j for j in range(4) if j == i or ids[j] != ids[i]]
        terms.append(torch.logsumexp(logits[i, columns], 0) - logits[i, i])
    torch.testing.assert_close(in_batch_softmax(q, x, ids, 0.1, log_q), torch.stack(terms).mean())


def test_identity_views_give_the_spread_out_softmax() -> None:
    x = functional.normalize(torch.randn(6, 4), dim=1)
    expected = (torch.logsumexp(x @ x.T / 0.07, 1) - 1 / 0.07).mean()
    torch.testing.assert_close(in_batch_softmax(x, x, torch.arange(6), 0.07), expected)


def test_vectors_are_unit_length_also_for_nobody_and_the_unknown_item(data: Dataset) -> None:
    model = _model(data).eval()
    items = model.item_vectors()
    unknown = model.encode_users(nobody())
    assert items.shape == (len(data.items) + 1, 8)
    assert unknown.shape == (1, 1, 8)
    torch.testing.assert_close(items.norm(dim=1), torch.ones(len(items)))
    torch.testing.assert_close(unknown.norm(dim=2), torch.ones(1, 1))


def test_a_batch_of_users_equals_single_users(data: Dataset) -> None:
    model = _model(data).eval()
    users = some_users(5, len(data.items))
    together = model.encode_users(users)
    for i in range(5):
        alone = UserBatch(*(array[i : i + 1] for array in vars(users).values()))
        torch.testing.assert_close(model.encode_users(alone)[0], together[i])
