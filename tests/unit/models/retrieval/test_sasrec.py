"""SASRec: causality from new to old, training at every step, the binary loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from models.layers.transformer_block import CausalBlock, older_or_self
from models.retrieval.sasrec import SASRec, SASRecConfig, binary_loss
from tests.unit.models.retrieval import worlds
from tests.unit.models.retrieval.worlds import HISTORY, ITEMS, histories, parameters
from tests.unit.models.users import some_users


def _sasrec(**changes: object) -> SASRec:
    model = worlds.model("sasrec", **changes)
    assert isinstance(model, SASRec)
    return model


@pytest.mark.parametrize(("d", "n", "blocks"), [(50, 200, 2), (64, 50, 2), (50, 50, 1)])
def test_the_number_of_parameters(d: int, n: int, blocks: int) -> None:
    model = SASRec(SASRecConfig(10, width=d, history=n, blocks=blocks))
    assert parameters(model) == n * d + blocks * (5 * d * d + 6 * d) + 2 * d


def test_a_state_has_seen_its_own_and_older_events_only() -> None:
    model, (history, _) = _sasrec(), histories(1)
    mask = torch.ones(1, HISTORY, dtype=torch.bool)
    before = model.states(history, mask)
    changed = history.clone()
    changed[0, 5] = torch.randn(worlds.WIDTH)
    after = model.states(changed, mask)
    moved = ~torch.isclose(before, after, atol=1e-7).all(2)[0]
    assert moved.tolist() == [True] * 6 + [False] * (HISTORY - 6)


def test_a_state_equals_the_vector_of_the_history_up_to_it_up_to_positions() -> None:
    model, (history, _) = _sasrec(), histories(1)
    mask = torch.ones(1, HISTORY, dtype=torch.bool)
    with torch.no_grad():
        model.position.zero_()
    states = model.states(history, mask)
    for p in (0, 4, HISTORY - 1):
        vector = model.extract(history[:, p:], mask[:, p:])[:, 0]
        torch.testing.assert_close(vector, states[:, p])


def test_visibility_by_hand() -> None:
    mask = torch.tensor([[True, True, False]])
    expected = [[True, True, False], [False, True, False], [False, False, True]]
    assert older_or_self(mask)[0, 0].tolist() == expected


def test_the_block_by_the_papers_equations() -> None:
    torch.manual_seed(0)
    block = CausalBlock(6, heads=2).eval()
    states, mask = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    normed = block.attention_norm(states)
    query, key, value = (normed @ w.T for w in block.project.weight.chunk(3))
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5
        scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).triu(), -torch.inf)
        heads.append(scores.softmax(2) @ value[..., part])
    attended = states + torch.cat(heads, dim=2)
    expected = attended + block.feed_forward(block.feed_forward_norm(attended))
    torch.testing.assert_close(block(states, older_or_self(mask)), expected)
    with pytest.raises(ValueError, match="heads"):
        CausalBlock(6, heads=4)


def test_training_all_steps_is_training_each_on_its_own() -> None:
    """Step p predicts event p - 1 from the older events, step 0 the target."""
    model = _sasrec(loss="full", positions="all", dropout=0.0)
    users = some_users(6, ITEMS)
    users.history[0, 1:] = 0
    rows, targets = model.rows(users), torch.arange(1, 7)
    losses = []
    states = model.states(model.item_table(rows), rows > 0)
    for row, target in enumerate(targets):
        label = target
        for p in range(int((rows[row] > 0).sum())):
            logits = states[row, p] @ model.item_table.weight[1:].T
            losses.append(functional.cross_entropy(logits, label - 1))
            label = rows[row, p]
    torch.testing.assert_close(
        model.loss(users, targets, torch.Generator()), torch.stack(losses).mean()
    )


def test_training_the_last_step_is_the_loss_of_the_shared_contract() -> None:
    model = _sasrec(loss="full", positions="last", dropout=0.0)
    users, targets = some_users(6, ITEMS), torch.arange(1, 7)
    vectors = model.user_vectors(model.rows(users))
    expected = model.interest_losses(vectors, targets, torch.Generator()).mean()
    torch.testing.assert_close(model.loss(users, targets, torch.Generator()), expected)


def test_the_binary_loss_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    positive, negative = torch.tensor([[2.0, 9.0], [3.0, 1.0]]), torch.ones(2, 2)
    got = binary_loss(vectors, positive, negative, torch.tensor([True, False]))
    s = torch.sigmoid
    expected = -(s(torch.tensor(2.0)).log() + (1 - s(torch.tensor(1.0))).log()
                 + s(torch.tensor(2.0)).log()) / 2  # fmt: skip
    torch.testing.assert_close(got, expected)


def test_the_users_own_items_are_no_negatives() -> None:
    """With every item in the history or the target no negative is left: only attraction."""
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(3, width=4, history=3, dropout=0.0))
    users = replace(some_users(2, 3), history=torch.tensor([[1, 2, 0], [2, 1, 0]]).numpy())
    targets = torch.tensor([3, 3])
    rows = model.rows(users)
    states, labels = model.states(model.item_table(rows), rows > 0), model.item_table(
        torch.tensor([[3, 1], [3, 2]])
    )  # fmt: skip
    expected = functional.softplus(-(states[:, :2] * labels).sum(2)).mean()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        torch.testing.assert_close(model.loss(users, targets, generator), expected)


def test_users_without_events_train_nothing() -> None:
    for loss in ("binary", "full"):
        model = _sasrec(loss=loss)
        users = some_users(2, ITEMS)
        users.history[:] = 0
        assert model.loss(users, torch.tensor([1, 2]), torch.Generator()).item() == 0


def test_dropout_acts_in_training_only() -> None:
    model, (history, mask) = _sasrec(dropout=0.5), histories(2)
    assert torch.equal(model.extract(history, mask), model.extract(history, mask))
    model.train()
    assert not torch.equal(model.extract(history, mask), model.extract(history, mask))


def test_it_has_one_interest() -> None:
    with pytest.raises(ValueError, match="one vector"):
        SASRecConfig(10, interests=2)
