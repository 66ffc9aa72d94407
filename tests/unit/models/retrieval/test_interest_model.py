"""Laws that every sequence model of retrieval obeys, whichever it is."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models import artifact, serving
from models.inputs import UserBatch
from models.layers.in_batch_softmax import in_batch_softmax
from models.retrieval.comirec import ComiRecSAConfig
from models.retrieval.interest_model import InterestModel
from services.candidate_generation import index
from tests.artifacts import publish
from tests.unit.models.retrieval import worlds
from tests.unit.models.retrieval.worlds import ITEMS, TABLE, histories
from tests.unit.models.users import nobody, some_users

every_model = pytest.mark.parametrize("name", worlds.NAMES)
PADDING = torch.zeros(1, dtype=torch.long)  # hidden rows


@every_model
def test_the_contract_of_shapes(name: str) -> None:
    model = worlds.model(name)
    users, items = model.encode_users(some_users(5, ITEMS)), model.item_vectors()
    assert model.source == name
    assert users.shape == (5, model.num_interests, model.cfg.width)
    assert items.shape == (ITEMS + 1, model.cfg.width)
    assert users.dtype == items.dtype == torch.float32
    assert not items[0].any()
    assert users.std() > 1e-3


@every_model
def test_what_padding_holds_has_no_effect(name: str) -> None:
    model = worlds.model(name)
    history, mask = histories(6)
    clean = model.extract(history, mask)
    dirty = model.extract(history.masked_fill(~mask[:, :, None], 1e6), mask)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)


@every_model
def test_more_padding_has_no_effect(name: str) -> None:
    model = worlds.model(name)
    history, mask = histories(6)
    mask = mask & (torch.arange(mask.shape[1]) < 7)
    torch.testing.assert_close(model.extract(history[:, :7], mask[:, :7]),
                               model.extract(history, mask))  # fmt: skip


@every_model
def test_padding_gets_no_gradient(name: str) -> None:
    model = worlds.model(name)
    history, mask = histories(6)
    history.requires_grad_()
    model.extract(history, mask).square().sum().backward()
    assert history.grad is not None
    assert not history.grad[~mask].any()
    assert history.grad[mask].any()


@every_model
def test_a_batch_of_users_equals_single_users(name: str) -> None:
    model = worlds.model(name)
    users = some_users(5, ITEMS)
    together = model.encode_users(users)
    for i in range(5):
        alone = UserBatch(*(array[i : i + 1] for array in vars(users).values()))
        torch.testing.assert_close(model.encode_users(alone)[0], together[i])


@every_model
def test_a_user_without_events_is_served_as_a_lover_of_the_popular(name: str) -> None:
    model = worlds.model(name)
    unknown, n = nobody(), model.cfg.history
    fan = copy.deepcopy(unknown)
    fan.history[0, :n] = np.arange(1, n + 1)
    assert torch.equal(model.encode_users(unknown), model.encode_users(fan))
    assert torch.isfinite(model.encode_users(unknown)).all()


@every_model
def test_extracting_from_nothing_is_finite(name: str) -> None:
    history, mask = histories(3)
    vectors = worlds.model(name).extract(history, torch.zeros_like(mask))
    assert torch.isfinite(vectors).all()


@every_model
def test_the_newest_events_are_those_a_model_reads(name: str) -> None:
    model = worlds.model(name)
    users = some_users(6, ITEMS)
    older = users.history.copy()
    older[:, model.cfg.history :] = 3
    changed = replace(users, history=older)
    assert torch.equal(model.encode_users(users), model.encode_users(changed))


@every_model
def test_training_lowers_the_loss_and_leaves_padding_zero(name: str) -> None:
    model = worlds.model(name).train()
    users, targets = some_users(32, ITEMS), torch.randint(1, ITEMS + 1, (32,))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)

    def loss(seed: int) -> Tensor:
        return model.loss(users, targets, torch.Generator().manual_seed(seed))

    with torch.no_grad():
        before = loss(0)
    for step in range(40):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(0) < 0.8 * before
    assert not model.item_table.weight[0].any()
    idle = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle in ([], ["extractor.heads.bias"]), "only a bias inside a softmax may be idle"


@every_model
def test_the_same_generator_gives_the_same_loss_whatever_torchs_global_state(name: str) -> None:
    model = worlds.model(name).train()
    users, targets = some_users(8, ITEMS), torch.arange(1, 9)
    values = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        values.append(model.loss(users, targets, torch.Generator().manual_seed(5)))
    assert torch.equal(*values)


@every_model
def test_a_published_model_answers_as_the_trained_one(name: str, tmp_path: Path) -> None:
    model = worlds.model(name)
    publish(tmp_path, name, model, TABLE)
    loaded = serving.load_retrieval(artifact.current(tmp_path, model.source))
    users = some_users(4, ITEMS)
    assert torch.equal(loaded.model.encode_users(users), model.encode_users(users))
    assert torch.equal(loaded.item_vectors, model.item_vectors())
    assert loaded.model.config() == model.config()


@every_model
@pytest.mark.parametrize("normalise", [False, True])
def test_retrieve_and_score_agree_on_every_item(name: str, normalise: bool) -> None:
    model = worlds.model(name, normalise=normalise)
    users, items = model.encode_users(some_users(4, ITEMS)), model.item_vectors()
    found = index.search(users, items, [np.empty(0, np.int64)] * 4, [ITEMS] * 4, PADDING)
    for user, answer in enumerate(found):
        rows = torch.from_numpy(answer.rows)[None]
        scores = model.score(users[user : user + 1], rows)[0]
        torch.testing.assert_close(scores, torch.from_numpy(answer.scores))
        assert len(answer.rows) == ITEMS


class _Extractor(nn.Module):
    def __init__(self, model: InterestModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        return self.model.extract(history, mask)


@every_model
def test_the_exported_graph_answers_as_the_model(name: str) -> None:
    model = worlds.model(name)
    history, mask = histories(4)
    exported = torch.export.export(_Extractor(model), (history, mask)).module()
    other_history, other_mask = histories(4, seed=1)
    assert not torch.equal(mask, other_mask)
    torch.testing.assert_close(
        exported(other_history, other_mask), model.extract(other_history, other_mask)
    )


@given(seed=st.integers(0, 2**31), k=st.integers(1, 5), depth=st.integers(1, 20))
def test_search_equals_merging_a_list_of_full_depth_per_interest(
    seed: int, k: int, depth: int
) -> None:
    """Exactness: an item of the top N is in the list of its own best interest (spec. 1.7)."""
    generator = torch.Generator().manual_seed(seed)
    interests = torch.randn(k, 6, generator=generator, dtype=torch.float64)
    items = torch.randn(41, 6, generator=generator, dtype=torch.float64)
    none = np.empty(0, np.int64)
    best: dict[int, float] = {}
    for answer in index.search(interests[:, None], items, [none] * k, [depth] * k, PADDING):
        for row in answer.rows.tolist():
            score = float((interests @ items[row]).max())
            best[row] = max(best.get(row, -np.inf), score)
    merged = sorted(best, key=lambda row: -best[row])[:depth]
    (whole,) = index.search(interests[None], items, [none], [depth], PADDING)
    assert whole.rows.tolist() == merged


def test_in_batch_loss_is_the_two_towers() -> None:
    model = worlds.model(
        "youtube_dnn", loss="in_batch", normalise=True, temperature=0.1, logq_correction=True
    )
    users, targets = some_users(8, ITEMS), torch.tensor([1, 2, 2, 3, 4, 5, 1, 6])
    expected = in_batch_softmax(
        model.extract(model.item_table(model.rows(users)), model.rows(users) > 0)[:, 0],
        model.item_table(targets),
        targets,
        0.1,
        model.log_q[targets],
    )
    torch.testing.assert_close(model.loss(users, targets, torch.Generator()), expected)
    assert model.log_q[1:].exp().sum() == pytest.approx(1.0)


def test_without_sampling_the_sampled_loss_is_the_full_one() -> None:
    users, targets = some_users(8, ITEMS), torch.arange(1, 9)
    values = [
        worlds.model("comirec_sa", **changes).loss(users, targets, torch.Generator())
        for changes in ({"loss": "full"}, {"loss": "sampled", "negatives": ITEMS})
    ]
    torch.testing.assert_close(*values)


def test_only_the_interest_that_fits_the_target_gets_gradient() -> None:
    model = worlds.model("comirec_sa")
    vectors = model.user_vectors(model.rows(some_users(8, ITEMS))).detach().requires_grad_()
    targets = torch.arange(1, 9)
    model.interest_losses(vectors, targets, torch.Generator()).sum().backward()
    assert vectors.grad is not None
    moved = vectors.grad.abs().sum(2) > 0
    best = torch.einsum("bkd,bd->bk", vectors, model.item_table(targets)).argmax(1)
    assert torch.equal(moved, torch.nn.functional.one_hot(best, 3).bool())


def test_a_sampled_loss_without_preparation_says_what_to_call() -> None:
    model = worlds.model("comirec_sa")
    model._sampler = None
    with pytest.raises(RuntimeError, match="prepare_training"):
        model.loss(some_users(2, ITEMS), torch.tensor([1, 2]), torch.Generator())


@pytest.mark.parametrize("changes", [{"num_items": 0}, {"temperature": 0.0}, {"loss": "binary"}])
def test_impossible_settings_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"positive|binary"):
        ComiRecSAConfig(**({"num_items": 5} | changes))


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="60 items"):
        worlds.model("mind").load_items(type(TABLE).build(["a"], TABLE.features[1:2]))


def test_interest_cosine_is_logged_for_hcn_beside_comirec() -> None:
    for name in ("hcn_r", "comirec_sa"):
        cosine = worlds.model(name).diagnostics(some_users(8, ITEMS))["interest_cosine"]
        assert -0.5 <= cosine <= 1
