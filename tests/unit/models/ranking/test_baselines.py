"""The baselines: sizes of the published harness, and each one's own law."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from models.data.events import Dataset
from models.layers.split_linear import SplitMLP
from models.ranking.dcn_v2 import DCNV2Backbone
from models.ranking.heads import TaskTowers
from tests.unit.models.ranking.declared import LEAST, domain, read
from tests.unit.models.ranking.worlds import count, rows, small, spread
from tests.unit.models.users import some_users

PUBLISHED = [(39, 203_265, 1_087_905), (22, 133_633, 451_969), (17, 113_153, 321_249)]


@pytest.mark.parametrize(("fields", "dnn", "dcn_v2"), PUBLISHED)
def test_parameters_equal_those_of_the_harness(fields: int, dnn: int, dcn_v2: int) -> None:
    columns = 16 * fields
    assert count(SplitMLP(columns, (256, 128)), TaskTowers(1, 128, (64, 32))) == dnn
    backbone = DCNV2Backbone(columns, 2, (128, 64))
    assert count(backbone, TaskTowers(1, backbone.out_width, (256, 128, 64, 32))) == dcn_v2


def _model(name: str, data: Dataset, **settings: Any) -> Any:
    return spread(small(name, data.items, **settings))


def test_logistic_regression_crosses_nothing(data: Dataset) -> None:
    """Without the declared match field, user and item add up: f(u,i) + f(v,j) = f(u,j) + f(v,i)."""
    n = len(data.items)
    model = _model("logistic_regression", data)
    batch, counters = some_users(2, n), torch.rand(2, 4).repeat(2, 1) * 20
    row_user, items = torch.tensor([0, 0, 1, 1]), torch.tensor([3, 7, 3, 7])
    with_match = model(batch, row_user, items, counters)
    (match,) = (s.input.name for s in model.reads.sources if s.how == "match")
    numbers = [i.name for side in ("user", "row") for i in model.reads.schema.of("number", side)]
    nn.init.zeros_(model.network.tables.number_weight[numbers.index(match)].detach())
    without = model(batch, row_user, items, counters)
    torch.testing.assert_close(without[0] + without[3], without[1] + without[2])
    assert not torch.allclose(with_match[0] + with_match[3], with_match[1] + with_match[2])


def test_tasks_start_with_the_same_products(data: Dataset) -> None:
    task_weight = small("fm", data.items).network.task_weight.detach()
    assert torch.equal(task_weight, torch.ones(2, 4))


def test_deepfm_without_its_deep_part_is_fm(data: Dataset) -> None:
    n = len(data.items)
    deep, fm = _model("deepfm", data), small("fm", data.items)
    assert not fm.load_state_dict(deep.state_dict(), strict=False).missing_keys
    batch, arguments = some_users(3, n), rows(n)
    assert not torch.allclose(deep(batch, *arguments), fm(batch, *arguments))
    for tower in deep.network.head.towers:
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
    model = _model("din", data)
    batch, arguments = some_users(3, n), rows(n)
    before = model(batch, *arguments)
    order = torch.randperm(batch.history.shape[1]).numpy()
    moved = replace(batch, history=batch.history[:, order], events=batch.events[:, order])
    torch.testing.assert_close(model(moved, *arguments), before, atol=1e-4, rtol=1e-4)
    (attention,) = model.network.attention
    nn.init.zeros_(attention.weight[-1].weight)
    nn.init.zeros_(attention.weight[-1].bias)
    assert not torch.allclose(model(batch, *arguments), before, atol=1e-3)


def test_din_tells_the_events_of_a_history_apart(data: Dataset) -> None:
    """Not through the pools alone, which read them, too."""
    model = _model("din", data)
    batch, arguments = some_users(3, len(data.items)), rows(len(data.items))
    before = model(batch, *arguments)
    with torch.no_grad():
        model.network.types[0].weight[0] += 1
    assert not torch.allclose(model(batch, *arguments), before, atol=1e-3)


def test_din_without_a_history_is_the_perceptron() -> None:
    own = domain(read(LEAST))
    din = spread(small("din", own.items, schema=own.schema))
    dnn = small("dnn", own.items, schema=own.schema)
    dnn.load_state_dict(din.state_dict())
    arguments = own.rows(din)
    assert torch.equal(din(own.users, *arguments), dnn(own.users, *arguments))


def test_mmoe_gives_every_task_its_own_mixture(data: Dataset) -> None:
    n = len(data.items)
    model = _model("mmoe", data)
    batch, arguments = some_users(3, n), rows(n)
    before = model(batch, *arguments)
    with torch.no_grad():
        model.network.mixture.gates.weight[4:8] *= -1  # of the second task's four experts
    changed = ~torch.isclose(model(batch, *arguments), before).all(0)
    assert changed.tolist() == [False, True]
