"""Measuring retrieval: scorers against hand-made cases, lists against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.data.sequences import Cases, Sequences, from_events, leave_one_out, user_split
from models.training.prepared import sequence_evaluation as ev
from models.training.prepared.sequence_evaluation import evaluate, evaluate_lists, union_of_lists
from models.training.prepared.sequences import build_model


def tiny() -> Sequences:
    """Item i has id i: a b a b c pattern over three users."""
    user = [1] * 5 + [2] * 5 + [3] * 5
    item = [1, 2, 3, 1, 2, 1, 2, 4, 1, 3, 2, 3, 5, 2, 4]
    return from_events("tiny", np.array(user), np.array(item))


def row(sequences: Sequences, item: int) -> int:
    return sequences.item_ids.index(str(item)) + 1


def test_popularity_counts_training_events_only() -> None:
    split = leave_one_out(tiny())
    scores = ev.counting_scorer(split, "popularity")(split.test)
    by_item = {int(i): scores[0, r] for r, i in enumerate(split.sequences.item_ids, 1)}
    assert by_item == {1: 2, 2: 3, 3: 2, 4: 1, 5: 1}
    assert (scores == scores[0]).all()


def test_markov_follows_the_newest_item() -> None:
    sequences = tiny()
    split = leave_one_out(sequences)
    lists = ev.ranked_lists(
        type(split)(**{**vars(split), "filter_seen": False}),
        split.test,
        ev.counting_scorer(split, "markov"),
        2,
    )
    # User 1's history ends in item 1, which was followed by 2 twice in training.
    assert lists[0, 0] == row(sequences, 2)
    # User 2's ends in 1 too; user 3's in 2, followed by 3 twice.
    assert lists[1, 0] == row(sequences, 2)
    assert lists[2, 0] == row(sequences, 3)


def test_ties_are_broken_by_training_counts_and_not_by_what_is_asked_later() -> None:
    # Items 8 and 9 are equal in training; in validation and test 9 is chosen by everyone else.
    user = np.repeat(np.arange(8), 3)
    item = np.array([8, 1, 2, 9, 1, 2, *([1, 9, 2] * 3), *([1, 2, 9] * 3)])
    split = leave_one_out(from_events("x", user, item))
    counts = split.train_counts()
    eight, nine = row(split.sequences, 8), row(split.sequences, 9)
    assert counts[eight] == counts[nine] == 1
    assert nine < eight, "row numbers know the later events"
    order = ev.tie_order(counts)
    assert sorted(order) == list(range(len(counts)))
    assert order[0] == 0
    assert (np.diff(counts[order[1:]]) <= 0).all()
    lists = ev.ranked_lists(split, split.test, lambda cases: np.zeros((len(cases), 5)), 4)
    for listed, known in zip(lists, ev.known_items(split.sequences, split.test), strict=True):
        expected = [r for r in order[1:] if r not in known]
        assert listed.tolist() == expected + [0] * (4 - len(expected))


def test_the_order_of_equal_training_counts_is_not_that_of_the_rows() -> None:
    items = np.arange(400)
    split = leave_one_out(from_events("x", np.repeat(np.arange(100), 4), items))
    counts = split.train_counts()
    order = ev.tie_order(counts)
    for count in (0, 1):
        rows = [r for r in order[1:] if counts[r] == count]
        assert rows != sorted(rows)
        # In a drawn order 99.5 of 199 neighbours ascend, with a standard deviation of 4.1.
        assert 79 < sum(a < b for a, b in itertools.pairwise(rows)) < 120


def test_filtered_protocols_never_list_what_was_seen() -> None:
    split = leave_one_out(tiny())
    lists = ev.ranked_lists(split, split.test, ev.counting_scorer(split, "popularity"), 5)
    for listed, known in zip(lists, ev.known_items(split.sequences, split.test), strict=True):
        assert not set(listed[listed > 0].tolist()) & set(known.tolist())
        assert 0 not in listed[: 5 - len(set(known.tolist()))]


@pytest.mark.parametrize("scorer", ["item_knn", "ease"])
def test_set_baselines_prefer_what_goes_with_the_history(scorer: str) -> None:
    groups = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(groups[u % 2]) for u in range(60)])
    split = user_split(from_events("groups", np.repeat(np.arange(60), 5), items))
    settings = {"l2": 5.0} if scorer == "ease" else {}
    result = evaluate(split, split.test, ev.counting_scorer(split, scorer, **settings), (5,))
    assert result.figures.metrics["recall@5"] == 1.0


def test_metrics_of_given_lists_by_hand() -> None:
    split = user_split(tiny_users())
    cases = Cases(np.array([0]), np.array([0]), np.array([2]), np.array([4]))
    wanted = split.sequences.items[2:4]
    lists = np.array([[wanted[1], 9, 0]])
    found = evaluate_lists(split, cases, lists, (1, 3)).figures.metrics
    assert found["recall@1"] == found["recall@3"] == 0.5
    assert found["hr@1"] == 1.0
    assert found["ndcg@3"] == pytest.approx(1 / (1 + 1 / np.log2(3)))
    assert found["coverage@3"] == pytest.approx(2 / split.sequences.num_items)


def tiny_users() -> Sequences:
    rng = np.random.default_rng(1)
    items = np.concatenate([rng.permutation(12)[:6] for _ in range(20)])
    return from_events("users", np.repeat(np.arange(20), 6), items)


@pytest.mark.parametrize("interests", [1, 3])
def test_lists_are_those_of_the_largest_product_over_interests(interests: int) -> None:
    split = user_split(tiny_users())
    model = build_model("comirec_sa", split.sequences, 0, width=4, interests=interests, history=4)
    with torch.no_grad():
        model.item_table.weight[1:].normal_()
    lists = ev.ranked_lists(
        split, split.test, ev.model_scorer(model, split.sequences, 4), split.sequences.num_items
    )
    batch = ev.case_batch(split.sequences, split.test, 4)
    users, items = model.encode_users(batch).numpy(), model.item_vectors().numpy()
    for user, listed in zip(users, lists, strict=True):
        best = (user @ items.T).max(0)
        assert np.allclose(best[listed], np.sort(best[1:])[::-1], atol=1e-6)


def test_lists_of_unlike_items_are_diverse_by_their_finest_category() -> None:
    sequences = from_events(
        "categories",
        np.repeat(np.arange(4), 5),
        np.array([1, 2, 3, 4, 5] * 4),
        attributes={"1": (7, 8), "2": (9, 8), "3": (7, 9)},  # 4 and 5 have none: unlike all others
    )
    split = user_split(sequences)
    cases = Cases(np.zeros(3, int), np.zeros(3, int), np.full(3, 4), np.full(3, 5))
    rows = {item: row(sequences, item) for item in range(1, 6)}
    lists = np.array([[1, 2, 3], [3, 4, 5], [1, 0, 0]])
    lists = np.vectorize(lambda item: rows.get(item, 0))(lists)
    found = evaluate_lists(split, cases, lists, (3,))
    values = found.per_case["intra_list_diversity@3"]
    assert values[:2].tolist() == [pytest.approx(2 / 3), 1.0]
    assert np.isnan(values[2])
    assert found.figures.metrics["intra_list_diversity@3"] == pytest.approx(5 / 6)


def test_without_attributes_nothing_is_said_of_diversity() -> None:
    split = user_split(tiny_users())
    found = evaluate(split, split.test, ev.counting_scorer(split, "popularity"), (3,))
    assert not [name for name in found.figures.metrics if "diversity" in name]


def test_blocks_of_users_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    split = user_split(tiny_users())
    whole = evaluate(split, split.test, ev.counting_scorer(split, "markov"), (3,))
    monkeypatch.setattr(ev, "BLOCK", 1)
    parts = evaluate(split, split.test, ev.counting_scorer(split, "markov"), (3,))
    assert np.array_equal(whole.lists, parts.lists)


LISTS = st.lists(st.integers(0, 9), min_size=6, max_size=6, unique=True)


@given(st.lists(LISTS, min_size=1, max_size=3), st.integers(1, 12))
def test_the_union_takes_turns_and_repeats_nothing(parts: list[list[int]], size: int) -> None:
    expected: list[int] = []
    for place in zip(*parts, strict=True):
        expected += [i for i in dict.fromkeys(place) if i and i not in expected]
    union = union_of_lists([np.array([p]) for p in parts], size)[0]
    kept = union[union > 0].tolist()
    assert kept == expected[: len(kept)]
    assert len(kept) == min(size, len(expected))
