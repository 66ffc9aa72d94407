"""SSL two-tower from item to item: its views, its losses, and that it learns pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn import functional

from models.data.sequences import NextItemPairs
from models.layers.feature_mask import corpus_items
from models.layers.in_batch_softmax import in_batch_softmax
from models.research.item_pairs import PairTraining, evaluate, metrics, train, user_values
from models.retrieval.ssl_item_to_item import (
    ItemField,
    SSLItemToItem,
    SSLItemToItemConfig,
    attribute_fields,
)
from models.training.bootstrap import mean_interval

ITEMS = 60
ATTRIBUTES = tuple((1 + i % 5, 6 + i % 3, 9 + i % 10) if i % 7 else () for i in range(ITEMS))
FIELDS = attribute_fields(ITEMS, ATTRIBUTES)
COUNTS = np.arange(ITEMS + 1)


def model(**changes: Any) -> SSLItemToItem:
    torch.manual_seed(0)
    config = SSLItemToItemConfig(field_width=8, hidden=(16,), width=8, value_dropout=0.0)
    made = SSLItemToItem(replace(config, **changes), FIELDS)
    made.prepare_training(COUNTS)
    return made


def test_fields_are_id_first_leaf_and_bag() -> None:
    assert [f.name for f in FIELDS] == ["id", "first", "leaf", "bag"]
    row = 2  # item index 1
    assert [f.values[row].tolist() for f in FIELDS] == [[2], [2], [10], [2, 7, 10, 0, 0, 0, 0, 0]]
    assert not any(f.values[1].any() for f in FIELDS[1:])


def test_an_item_without_a_value_has_the_fields_default() -> None:
    made = model()
    found = made.item_fields(torch.tensor([1, 2]))
    assert torch.equal(found[0, 1:], made.default[1:])
    assert (found[1] != made.default).any(1).all()


@pytest.mark.parametrize("kind", ["cfm", "rfm"])
def test_complementary_views_show_every_field_exactly_once(kind: str) -> None:
    made = model(augmentation=kind)
    rows = torch.tensor([2, 3, 4])
    whole = made.item_fields(rows)
    masks = set()
    for seed in range(30):
        first, second = made.views(rows, torch.Generator().manual_seed(seed))
        shown = (first == whole).all(2), (second == whole).all(2)
        assert torch.equal(shown[0], ~shown[1])
        assert (shown[0] == shown[0][0]).all(), "one choice for the whole batch"
        assert torch.equal(torch.where(shown[0][:, :, None], whole, made.default), first)
        assert shown[0][0].sum() == 2
        masks.add(tuple(shown[0][0].tolist()))
    assert len(masks) > 2


def test_masks_follow_the_information_of_the_chosen_source() -> None:
    """`b` repeats `a` but in the items that pairs are of, where `c` does."""
    a, other = np.tile([1, 2], 20), np.tile([1, 1, 2, 2], 10)
    counts, chosen = np.zeros(41, np.int64), np.arange(40) < 8
    counts[1:][chosen] = 3
    fields = tuple(
        ItemField(name, np.concatenate([[0], values])[:, None], 41)
        for name, values in (
            ("id", np.arange(1, 41)),
            ("a", a),
            ("b", np.where(chosen, other, a)),
            ("c", np.where(chosen, a, other)),
        )
    )

    def hidden_with_a(**changes: Any) -> tuple[bool, ...]:
        """Which fields view 1 hides when the seed is `a`, the only seed of which b or c is."""
        config = SSLItemToItemConfig(field_width=4, hidden=(), width=4, value_dropout=0.0)
        made = SSLItemToItem(replace(config, **changes), fields)
        made.prepare_training(counts)
        rows, draws = torch.tensor([1]), range(40)
        views = {
            seed: made.views(rows, generator)[0]
            for draw in draws
            for generator in (torch.Generator().manual_seed(draw),)
            for seed in (int(torch.randint(4, (), generator=torch.Generator().manual_seed(draw))),)
        }
        return tuple((views[1][0] == made.default).all(1).tolist())

    assert hidden_with_a() == (False, True, True, False)
    assert hidden_with_a(mi_source="log") == (False, True, False, True)
    assert hidden_with_a(mi_neighbours="all") == (True, True, False, False)
    assert hidden_with_a(cfm_size="paper") == (False, True, True, True)


def test_two_fields_are_too_few_for_the_papers_size_and_views_need_preparation() -> None:
    two = SSLItemToItem(SSLItemToItemConfig(cfm_size="paper"), FIELDS[:2])
    with pytest.raises(ValueError, match="hides all of 2 fields"):
        two.prepare_training(COUNTS)
    with pytest.raises(RuntimeError, match="prepare_training"):
        two.views(torch.tensor([1]), torch.Generator())
    logq = SSLItemToItem(SSLItemToItemConfig(logq_correction=True), FIELDS)
    with pytest.raises(RuntimeError, match="prepare_training"):
        logq.loss(torch.tensor([1]), torch.tensor([2]), torch.Generator())


def test_a_zero_default_embedding_is_frozen() -> None:
    made = model(default_emb="zero")
    first, _ = made.views(torch.tensor([2, 3]), torch.Generator())
    assert (first[0] == 0).all(1).sum() == 2
    made.loss(torch.tensor([2, 3]), torch.tensor([4, 5]), torch.Generator()).backward()
    assert made.default.grad is None
    assert not made.default.any()


@pytest.mark.parametrize("masked", [True, False])
def test_the_main_loss_takes_logq_and_accidental_hits_as_told(masked: bool) -> None:
    query, item = torch.tensor([2, 3, 4, 5]), torch.tensor([5, 6, 7, 6])
    made = model(alpha=0.0, logq_correction=True, mask_accidental_hits=masked)
    expected = in_batch_softmax(
        made.query_mlp(made.item_fields(query).flatten(1)),
        made.item_mlp(made.item_fields(item).flatten(1)),
        item,
        made.cfg.temperature,
        torch.log(torch.from_numpy(COUNTS[item.numpy()] / COUNTS.sum()).float()),
        masked,
    )
    torch.testing.assert_close(made.loss(query, item, torch.Generator()), expected)


def test_feature_dropout_hides_any_field_of_the_pairs_item_and_has_no_self_supervision() -> None:
    query, item = torch.tensor([2, 3, 4, 5]), torch.tensor([5, 6, 7, 8])
    made = model(augmentation="fd", value_dropout=1.0, alpha=0.7)
    expected = in_batch_softmax(
        made.query_mlp(made.item_fields(query).flatten(1)),
        made.item_mlp(made.default.expand(4, -1, -1).flatten(1)),
        item,
        made.cfg.temperature,
    )
    assert torch.equal(made.loss(query, item, torch.Generator()), expected)
    whole = made.item_fields(torch.arange(2, 8))
    some = made.item_fields(torch.arange(2, 8), 0.5, torch.Generator(), every_field=True)
    shown = (some == whole).all(2)
    assert shown[:, 0].any()
    assert not shown[:, 0].all()
    with pytest.raises(ValueError, match="no views"):
        made.views(item, torch.Generator())


def test_feature_dropout_of_nothing_is_the_baseline() -> None:
    query, item = torch.tensor([2, 3, 4, 5]), torch.tensor([5, 6, 7, 6])
    values = [
        model(**changes).loss(query, item, torch.Generator())
        for changes in ({"augmentation": "fd", "value_dropout": 0.0}, {"alpha": 0.0})
    ]
    assert torch.equal(*values)


def test_spread_out_views_are_whole_and_independent_halves_differ() -> None:
    rows = torch.tensor([2, 3])
    whole = model().item_fields(rows)
    first, second = model(augmentation="spread_out").views(rows, torch.Generator())
    assert torch.equal(first, whole)
    assert torch.equal(second, whole)
    made = model(augmentation="rfm_no_complement")
    pairs = [made.views(rows, torch.Generator().manual_seed(s)) for s in range(20)]
    shown = [tuple((v[0] == whole[0]).all(1).tolist() for v in pair) for pair in pairs]
    assert any(a == b for a, b in shown)
    assert any(a != b for a, b in shown)


def test_value_dropout_spares_the_one_hot_fields() -> None:
    made = model(augmentation="dropout", value_dropout=1.0)
    rows = torch.tensor([2, 3])
    whole = made.item_fields(rows)
    first, _ = made.views(rows, torch.Generator())
    assert torch.equal(first[:, :3], whole[:, :3])
    assert torch.equal(first[:, 3], made.default[3].expand(2, -1))


def test_alpha_zero_is_the_in_batch_softmax_and_the_query_tower_sees_no_self_supervision() -> None:
    query, item = torch.tensor([2, 3, 4, 5]), torch.tensor([5, 6, 7, 6])
    made = model(alpha=0.0)
    expected = in_batch_softmax(
        made.query_mlp(made.item_fields(query).flatten(1)),
        made.item_mlp(made.item_fields(item).flatten(1)),
        item,
        made.cfg.temperature,
    )
    main = made.loss(query, item, torch.Generator())
    assert torch.equal(main, expected)
    both = model(alpha=0.7)
    both.load_state_dict(made.state_dict())
    (
        both.loss(query, item, torch.Generator().manual_seed(1))
        - made.loss(query, item, torch.Generator()).detach()
    ).backward()
    main.backward()
    for a, b in zip(made.query_mlp.parameters(), both.query_mlp.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    item_weights = zip(made.item_mlp.parameters(), both.item_mlp.parameters(), strict=True)
    assert any(not torch.allclose(a.grad, b.grad) for a, b in item_weights)


def test_identity_views_push_items_apart_by_the_spread_out_softmax() -> None:
    """Self-similarity is 1, and an item that was drawn twice is no negative of its own."""
    query, item = torch.arange(1, 31), torch.arange(31, 61)
    made = model(augmentation="spread_out", alpha=0.5)
    corpus = torch.randint(1, ITEMS + 1, (30,), generator=torch.Generator().manual_seed(4))
    assert len(corpus.unique()) < 30
    x = made.vectors("item")[corpus]
    logits = x @ x.T / made.cfg.temperature
    negatives = logits.masked_fill(corpus[:, None] == corpus, float("-inf"))
    own = 1 / made.cfg.temperature
    terms = torch.logaddexp(negatives.logsumexp(1), torch.tensor(own)) - own
    main = model(alpha=0.0).loss(query, item, torch.Generator())
    found = made.loss(query, item, torch.Generator().manual_seed(4)) - main
    torch.testing.assert_close(found, 0.5 * terms.mean())


def test_the_self_supervised_batch_is_uniform_over_the_corpus() -> None:
    made = model()
    generator = torch.Generator().manual_seed(0)
    like = torch.ones(5000, dtype=torch.long)  # what is trained on must not matter
    drawn = corpus_items(made.num_items, like, generator)
    counts = torch.bincount(drawn, minlength=ITEMS + 1).numpy()
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 0.001


@pytest.mark.parametrize(("hidden", "width", "count"), [(256, 64, 82_240), (1024, 256, 525_568)])
def test_both_towers_have_the_specified_size(hidden: int, width: int, count: int) -> None:
    made = model(field_width=64, hidden=(hidden,), width=width)
    for tower in (made.query_mlp, made.item_mlp):
        assert sum(p.numel() for p in tower.parameters()) == count


class _Tower(nn.Module):
    def __init__(self, made: SSLItemToItem, side: str) -> None:
        super().__init__()
        self.made, self.side = made, side

    def forward(self, rows: Tensor) -> Tensor:
        tower = self.made.query_mlp if self.side == "query" else self.made.item_mlp
        return functional.normalize(tower(self.made.item_fields(rows).flatten(1)), dim=1)


@pytest.mark.parametrize("side", ["query", "item"])
def test_the_exported_graph_answers_as_the_model(side: Literal["query", "item"]) -> None:
    made = model().eval()
    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(
        _Tower(made, side), (torch.arange(4),), dynamic_shapes=[{0: rows}]
    )
    found = exported.module()(torch.arange(ITEMS + 1))
    torch.testing.assert_close(found, made.vectors(side))


def test_it_learns_certain_pairs_and_never_answers_with_the_query() -> None:
    query = np.tile(np.arange(1, ITEMS + 1), 20)
    pairs = np.stack([query, query % ITEMS + 1], axis=1)
    nobody = np.zeros(0, np.int64)
    data = NextItemPairs(pairs, pairs[:ITEMS], pairs[:ITEMS], nobody, nobody, nobody)
    made = model()
    before = evaluate(made, data, data.test)["map@10"].mean()
    train(made, data, PairTraining(epochs=15, batch_size=64, learning_rate=0.1, patience=15))
    found = evaluate(made, data, data.test)
    assert found["map@10"].mean() > 5 * before
    items = np.arange(1, ITEMS + 1)
    own = evaluate(made, data, np.stack([items, items], axis=1))
    assert not own["recall@50"].any(), "the query item is never listed"


def test_head_and_tail_recall_by_hand() -> None:
    train_pairs = np.array([[1, 2]] * 5 + [[1, 3]] * 2 + [[2, i] for i in range(4, 12)])
    nobody = np.zeros(0, np.int64)
    data = NextItemPairs(train_pairs, train_pairs[:1], train_pairs[:1], nobody, nobody, nobody)
    asked = np.array([[1, 2], [1, 3]])  # of 11 items the two most frequent targets are the head
    lists = np.zeros((2, 50), np.int64)
    lists[0, 0], lists[1, 10] = 2, 3
    found = metrics(lists, data, asked)
    assert found["recall@10"].tolist() == [1, 0]
    assert found["map@50"].tolist() == [1, pytest.approx(1 / 11)]
    assert found["head_recall@10"].tolist() == [1, 0]
    assert np.isnan(found["tail_recall@10"]).all()


def test_user_values_have_the_mean_over_pairs_and_move_with_whole_users() -> None:
    user = np.array([7, 7, 7, 9, 9, 4])
    values = {"recall@10": np.array([1.0, 1, 0, 0, 0, np.nan])}
    found = user_values(values, user)["recall@10"]  # users 4, 7, 9
    # By hand: mean .4; user 7 is 2 - 3 * .4 above it, user 9 is -2 * .4; 2 users have 5 pairs.
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx([0.4 + 0.8 * 2 / 5, 0.4 - 0.8 * 2 / 5])
    assert np.nanmean(found) == pytest.approx(0.4)


def test_intervals_over_users_are_wider_than_over_their_like_pairs() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(80), 25)
    pairs = (rng.random(2000) < np.repeat(rng.random(80) ** 3, 25)).astype(float)
    by_user = mean_interval(user_values({"r": pairs}, user)["r"])
    by_pair = mean_interval(pairs)
    assert by_user.mean == pytest.approx(by_pair.mean)
    assert by_user.high - by_user.low > 2 * (by_pair.high - by_pair.low)
