"""What every ranking model owes the service and the trainer, whichever it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import artifact
from models.data.events import Dataset
from models.ranking.dcn_v2 import DCNV2, DCNV2Config
from models.ranking.deepfm import DeepFM, DeepFMConfig
from models.ranking.din import DIN, DINConfig
from models.ranking.dnn import DNN, DNNConfig
from models.ranking.fm import FM, FMConfig
from models.ranking.infnet import INFNet, INFNetConfig
from models.ranking.logistic_regression import LogisticRegression, LogisticRegressionConfig
from models.ranking.mlcc import MLCC, MLCCConfig
from models.ranking.mmoe import MMoE, MMoEConfig
from models.serving import load_ranking
from tests.unit.models.ranking.worlds import rows, spread, user
from tests.unit.models.users import nobody, some_users

TASKS = ("click", "like", "share")
SMALL: dict[str, Any] = {"width": 4, "tasks": TASKS}


def _models(n: int) -> dict[str, Any]:
    infnet = {**SMALL, "head": (8,), "blocks": 2}
    mlcc: dict[str, Any] = {"channel_width": 4, "heads": 2, "tower": (8,), "tasks": TASKS}
    return {
        "logistic_regression": LogisticRegression(LogisticRegressionConfig(n, TASKS)),
        "fm": FM(FMConfig(n, **SMALL)),
        "deepfm": DeepFM(DeepFMConfig(n, hidden=(12, 8), tower=(8,), **SMALL)),
        "dnn": DNN(DNNConfig(n, hidden=(12, 8), tower=(8,), dropout=0.1, **SMALL)),
        "dcn_v2": DCNV2(DCNV2Config(n, hidden=(12, 8), tower=(8,), **SMALL)),
        "din": DIN(DINConfig(n, hidden=(12, 8), tower=(8,), **SMALL)),
        "mmoe": MMoE(MMoEConfig(n, expert=(12, 8), tower=(8,), **SMALL)),
        "infnet": INFNet(INFNetConfig(n, **infnet)),
        "infnet/target in sequence": INFNet(
            INFNetConfig(n, target_in_c=False, sequence_fuse="concat", **infnet)
        ),
        "infnet/shared table": INFNet(INFNetConfig(n, sequence_table="shared", **infnet)),
        "infnet/literal": INFNet(
            INFNetConfig(n, proxy_source="stale", residual=False, heads=2, out_proj=True, **infnet)
        ),
        "mlcc": MLCC(MLCCConfig(n, channels=3, **mlcc)),
        "mlcc/one channel": MLCC(MLCCConfig(n, channels=1, emb_init_std=None, **mlcc)),
        "mlcc/switches": MLCC(
            MLCCConfig(n, channels=2, per_channel_lc=True, se=False, raw_concat=False,
                       dyn_activation="tanh", **mlcc)
        ),
    }  # fmt: skip


NAMES = list(_models(3))


@pytest.fixture
def model(request: pytest.FixtureRequest, data: Dataset) -> Any:
    model = _models(len(data.items))[request.param]
    model.load_items(data.items)
    return spread(model).eval()


every_model = pytest.mark.parametrize("model", NAMES, indirect=True)


@every_model
def test_a_batch_of_requests_equals_single_rows(model: Any, data: Dataset) -> None:
    n = len(data.items)
    batch, (row_user, items, counters) = some_users(3, n), rows(n, 9)
    scores = model.score(model.user_part(batch), row_user, items, counters)
    logits = model(batch, row_user, items, counters)
    assert scores.shape == (9, 3)
    assert scores.dtype == torch.float32
    assert (scores.std(0) > 1e-4).all()
    torch.testing.assert_close(torch.sigmoid(logits), scores, atol=1e-5, rtol=1e-4)
    zero = torch.zeros(1, dtype=torch.long)
    for i in range(9):
        alone = model.user_part(user(batch, int(row_user[i])))
        one = slice(i, i + 1)
        score = model.score(alone, zero, items[one], counters[one])
        torch.testing.assert_close(score, scores[one], atol=1e-5, rtol=1e-4)


@every_model
def test_what_stands_in_padded_places_of_a_history_has_no_effect(model: Any, data: Dataset) -> None:
    n = len(data.items)
    batch, (row_user, items, counters) = some_users(3, n), rows(n)
    items[0] = 1
    before = model.score(model.user_part(batch), row_user, items, counters)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("item_table.weight", "sequence_table.weight")):
                parameter[0] = 100.0
    other = replace(batch, history_liked=batch.history_liked | (batch.history == 0))
    after = model.score(model.user_part(other), row_user, items, counters)
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-5)


@every_model
def test_nobody_and_an_unknown_item_get_a_probability(model: Any) -> None:
    zero = torch.zeros(1, dtype=torch.long)
    scores = model.score(model.user_part(nobody()), zero, zero, torch.zeros(1, 3))
    assert ((scores > 0) & (scores < 1)).all()


@every_model
def test_training_counts_replace_those_of_the_item_table(model: Any, data: Dataset) -> None:
    n = len(data.items)
    batch, (row_user, items, counters) = some_users(3, n), rows(n)
    table = model.fields.lifetime[items]
    served = model(batch, row_user, items, counters)
    torch.testing.assert_close(model(batch, row_user, items, counters, table), served)
    assert not torch.allclose(model(batch, row_user, items, counters, table + 40), served)


@every_model
def test_a_published_model_scores_as_before(model: Any, data: Dataset, tmp_path: Path,
                                            request: pytest.FixtureRequest) -> None:  # fmt: skip
    name = request.node.callspec.params["model"].split("/")[0]
    version = artifact.publish(
        tmp_path,
        name,
        tensors=model.state_dict(),
        config=json.loads(json.dumps({"model": name, "parameters": model.config()})),
        items=data.items,
        metrics={},
        data_window={},
    )
    loaded = load_ranking(tmp_path / name / "versions" / version)
    assert loaded.model.tasks == TASKS
    assert not loaded.model.training  # type: ignore[attr-defined]
    n = len(data.items)
    batch, arguments = some_users(3, n), rows(n)
    before: Tensor = model.score(model.user_part(batch), *arguments)
    assert torch.equal(loaded.model.score(loaded.model.user_part(batch), *arguments), before)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_reached_and_padding_is_not(name: str, data: Dataset) -> None:
    n = len(data.items)
    model = _models(n)[name]
    model.load_items(data.items)
    batch, (row_user, items, counters) = some_users(3, n), rows(n)
    logits = model(batch, row_user, items, counters)
    model.loss(logits, torch.rand(6, 3), torch.ones(6, 3, dtype=torch.bool)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key
        if key.endswith(("item_table.weight", "sequence_table.weight")):
            assert not parameter.grad[0].any(), key


@pytest.mark.parametrize("name", NAMES)
def test_a_model_can_learn_what_it_is_shown(name: str, data: Dataset) -> None:
    """Which of eight items is liked, the same by all users, is within the reach of every model."""
    model = _models(len(data.items))[name].eval()
    model.load_items(data.items)
    batch, items = some_users(3, len(data.items)), torch.arange(1, 9).repeat(3)
    row_user, counters = torch.arange(3).repeat_interleave(8), torch.zeros(24, 3)
    labels = (items % 2 == 0).float()[:, None].expand(24, 3)
    known = torch.ones(24, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(80):
        loss = model.loss(model(batch, row_user, items, counters), labels, known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
