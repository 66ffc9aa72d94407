"""The baselines: sizes of the published harness, and each one's own law."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from models.data.events import Dataset
from models.layers.split_linear import SplitMLP
from models.ranking.dcn_v2 import DCNV2Backbone
from models.ranking.deepfm import DeepFM, DeepFMConfig
from models.ranking.din import DIN, DINConfig
from models.ranking.fm import FM, FMConfig
from models.ranking.heads import TaskTowers
from models.ranking.logistic_regression import LogisticRegression, LogisticRegressionConfig
from models.ranking.mmoe import MMoE, MMoEConfig
from tests.unit.models.ranking.worlds import count, rows, spread
from tests.unit.models.users import some_users

PUBLISHED = [(39, 203_265, 1_087_905), (22, 133_633, 451_969), (17, 113_153, 321_249)]


@pytest.mark.parametrize(("fields", "dnn", "dcn_v2"), PUBLISHED)
def test_parameters_equal_those_of_the_harness(fields: int, dnn: int, dcn_v2: int) -> None:
    columns = 16 * fields
    assert count(SplitMLP(columns, (256, 128)), TaskTowers(1, 128, (64, 32))) == dnn
    backbone = DCNV2Backbone(columns, 2, (128, 64))
    assert count(backbone, TaskTowers(1, backbone.out_width, (256, 128, 64, 32))) == dcn_v2


def _ready(model: Any, data: Dataset) -> Any:
    model.load_items(data.items)
    return spread(model).eval()


def test_logistic_regression_crosses_nothing(data: Dataset) -> None:
    """Without the declared match field, user and item add up: f(u,i) + f(v,j) = f(u,j) + f(v,i)."""
    n = len(data.items)
    model = _ready(LogisticRegression(LogisticRegressionConfig(n)), data)
    batch, counters = some_users(2, n), torch.rand(2, 3).repeat(2, 1) * 20
    row_user, items = torch.tensor([0, 0, 1, 1]), torch.tensor([3, 7, 3, 7])
    with_match = model(batch, row_user, items, counters)
    nn.init.zeros_(model.fields.match)
    without = model(batch, row_user, items, counters)
    torch.testing.assert_close(without[0] + without[3], without[1] + without[2])
    assert not torch.allclose(with_match[0] + with_match[3], with_match[1] + with_match[2])


def test_fm_is_linear_terms_and_all_products_of_pairs(data: Dataset) -> None:
    n = len(data.items)
    model = _ready(FM(FMConfig(n, width=4)), data)
    batch, (row_user, items, counters) = some_users(3, n), rows(n)
    fields, shares = model.fields.user(batch)
    rest = model.fields.candidate(shares[row_user], items, counters)
    every = torch.cat([fields[row_user], rest], dim=1)
    pairs = torch.stack([every[:, i] * every[:, j] for i, j in combinations(range(14), 2)])
    linear = model.linear
    own, own_shares = linear.user(batch)
    terms = torch.cat(
        [own[row_user], linear.candidate(own_shares[row_user], items, counters)], dim=1
    )
    expected = linear.bias + terms.sum(1) + pairs.sum(0) @ model.task_weight.T
    actual = model(batch, row_user, items, counters)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_tasks_start_with_the_same_products() -> None:
    model = FM(FMConfig(5, tasks=("click", "like", "share")))
    assert torch.equal(model.task_weight.detach(), torch.ones(3, 16))


def test_deepfm_without_its_deep_part_is_fm(data: Dataset) -> None:
    n = len(data.items)
    deep = _ready(DeepFM(DeepFMConfig(n, width=4)), data)
    fm = FM(FMConfig(n, width=4))
    fm.load_items(data.items)
    assert not fm.load_state_dict(deep.state_dict(), strict=False).missing_keys
    batch, arguments = some_users(3, n), rows(n)
    assert not torch.allclose(deep(batch, *arguments), fm(batch, *arguments))
    for tower in deep.towers:
        nn.init.zeros_(tower[-1].weight)
        nn.init.zeros_(tower[-1].bias)
    torch.testing.assert_close(deep(batch, *arguments), fm(batch, *arguments))


def test_dcn_v2_splits_its_first_maps_exactly() -> None:
    net = spread(DCNV2Backbone(12, 2, (8, 6)))
    user, rest, row_user = torch.randn(2, 5), torch.randn(4, 7), torch.tensor([1, 0, 0, 1])
    whole = net(torch.cat([user[row_user], rest], dim=1))
    assert whole.shape == (4, 12 + 6)
    split = net.from_parts(net.user_part(user), row_user, rest)
    torch.testing.assert_close(split, whole, atol=1e-4, rtol=1e-4)


def test_din_attends_to_the_history_of_the_row_s_user(data: Dataset) -> None:
    """Which item stands where does not matter, which items there are does."""
    n = len(data.items)
    model = _ready(DIN(DINConfig(n, width=4)), data)
    batch, arguments = some_users(3, n), rows(n)
    before = model(batch, *arguments)
    order = torch.randperm(batch.history.shape[1]).numpy()
    moved = replace(
        batch, history=batch.history[:, order], history_liked=batch.history_liked[:, order]
    )
    torch.testing.assert_close(model(moved, *arguments), before, atol=1e-4, rtol=1e-4)
    nn.init.zeros_(model.attention.weight[-1].weight)
    nn.init.zeros_(model.attention.weight[-1].bias)
    assert not torch.allclose(model(batch, *arguments), before, atol=1e-3)


def test_mmoe_gives_every_task_its_own_mixture(data: Dataset) -> None:
    n = len(data.items)
    model = _ready(MMoE(MMoEConfig(n, width=4, tasks=("click", "like", "share"))), data)
    batch, arguments = some_users(3, n), rows(n)
    before = model(batch, *arguments)
    with torch.no_grad():
        model.mixture.gates.weight[4:8] *= -1  # of the second task's four experts
    changed = ~torch.isclose(model(batch, *arguments), before).all(0)
    assert changed.tolist() == [False, True, False]
