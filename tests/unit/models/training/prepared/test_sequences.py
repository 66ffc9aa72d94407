"""Training on sequences: which examples are drawn, and that every model learns from them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from models.data.sequences import Sequences, from_events, leave_one_out, user_split
from models.registry import UnknownModel
from models.training.prepared.domain import ATTRIBUTES
from models.training.prepared.sequence_evaluation import (
    counting_scorer,
    evaluate,
    mean_metric,
    model_scorer,
    newest_first,
)
from models.training.prepared.sequences import (
    Moments,
    SequenceTraining,
    build_model,
    item_table,
    model_history,
    train,
)

HISTORY = 8
SIZES = {"width": 8, "history": HISTORY, "negatives": 10}
SETTINGS: dict[str, dict[str, Any]] = {
    "youtube_dnn": SIZES,
    "mind": SIZES,
    "comirec_sa": SIZES,
    "comirec_dr": SIZES | {"dr_init_std": 0.3},
    "hcn_r": SIZES | {"short_history": 3},
    "desmil_r": SIZES | {"inner_steps": 2, "start_epoch": 0},
    "sasrec": SIZES | {"loss": "sampled", "dropout": 0.0},
    "ssl_two_tower": {"field_width": 8, "width": 8, "hidden": (16,)},
}


def cycles(users: int = 60, items: int = 24, seed: int = 0) -> Sequences:
    """Everyone walks the circle of items from a random start: the next item is certain."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 15, users)
    start = rng.integers(0, items, users)
    walks = [(s + np.arange(n)) % items for s, n in zip(start, lengths, strict=True)]
    return from_events("cycles", np.repeat(np.arange(users), lengths), np.concatenate(walks))


def test_newest_first_is_padded_at_the_old_end() -> None:
    items = np.array([5, 6, 7, 8, 9])
    rows = newest_first(items, np.array([0, 3]), np.array([3, 5]), 4)
    assert rows.tolist() == [[7, 6, 5, 0], [9, 8, 0, 0]]


def draws(sampling: str, count: int = 40, **changes: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    split = user_split(cycles())
    moments = Moments(split, HISTORY, SequenceTraining(sampling=sampling, **changes))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    out = []
    for _ in range(count):
        batch, targets = moments.draw(16, generator)
        out.append((batch.history, targets.numpy()))
    return out


@pytest.mark.parametrize("sampling", ["users", "events", "sequences"])
@pytest.mark.parametrize("windows", [False, True])
def test_the_target_follows_the_history_in_the_data(sampling: str, windows: bool) -> None:
    sequences = cycles()
    circle = {int(i): row for row, i in enumerate(sequences.item_ids, 1)}
    after = {circle[i]: circle[(i + 1) % len(circle)] for i in circle}
    for history, targets in draws(sampling, random_windows=windows):
        assert [after[row] for row in history[:, 0]] == targets.tolist()
        both = (history[:, 1:] > 0) & (history[:, :-1] > 0)
        older, newer = history[:, 1:][both], history[:, :-1][both]
        assert [after[row] for row in older] == newer.tolist()
        assert not ((history[:, :-1] == 0) & (history[:, 1:] > 0)).any()


def test_protocol_a_draws_distinct_users_and_at_least_four_known_events() -> None:
    split = user_split(cycles())
    moments = Moments(split, 20, SequenceTraining(sampling="users"))
    generator = torch.Generator().manual_seed(1)
    users: Counter[int] = Counter()
    for _ in range(200):
        start, at = moments._users(
            16, np.random.default_rng(int(torch.randint(2**60, (), generator=generator)))
        )
        assert len(set(start.tolist())) == 16
        assert ((at - start) >= 4).all()
        users.update(start.tolist())
    # Every training user about equally often, however active: 200 * 16 / 48 = 67 each.
    assert len(users) == 48
    assert 35 < min(users.values()) <= max(users.values()) < 105


def test_events_are_drawn_uniformly() -> None:
    split = leave_one_out(cycles())
    moments = Moments(split, 20, SequenceTraining(sampling="events", min_history=1))
    _, at = moments._events(20_000, np.random.default_rng(0))
    trained = set(split.train_events().tolist()) - set(split.train_start.tolist())
    counts = Counter(at.tolist())
    assert set(counts) == trained
    expected = 20_000 / len(trained)
    assert max(abs(n - expected) for n in counts.values()) < 6 * expected**0.5


def test_a_batch_of_sequences_is_no_wider_than_its_longest() -> None:
    for history, _ in draws("sequences"):
        assert (history[:, -1] > 0).any()
        assert history.shape[1] <= HISTORY


def test_no_drawn_item_is_held_out() -> None:
    sequences = cycles()
    split = leave_one_out(sequences)
    for sampling in ("users", "events", "sequences"):
        moments = Moments(split, HISTORY, SequenceTraining(sampling=sampling))  # type: ignore[arg-type]
        rng = np.random.default_rng(0)
        for _ in range(30):
            start, at = getattr(moments, f"_{sampling}")(16, rng)
            user = np.searchsorted(sequences.offsets, start, side="right") - 1
            assert (at < split.train_end[user]).all()


def test_the_same_generator_gives_the_same_batches() -> None:
    for one, other in zip(draws("sequences", 5), draws("sequences", 5), strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


@pytest.mark.parametrize("name", SETTINGS)
def test_every_model_learns_a_certain_next_item(name: str) -> None:
    split = leave_one_out(cycles())
    model = build_model(name, split.sequences, 3, **SETTINGS[name])
    sampling = "sequences" if name == "sasrec" else "events"
    training = SequenceTraining(
        steps=150, batch_size=64, learning_rate=0.02, validate_every=50, sampling=sampling,
        min_history=1, valid_metric="recall@5",
    )  # fmt: skip
    report = train(model, split, training)
    scorer = model_scorer(model, split.sequences, model_history(model))
    reached = mean_metric(split, split.test, scorer, "recall@5")
    assert reached > 1.5 * mean_metric(
        split, split.test, counting_scorer(split, "popularity"), "recall@5"
    )
    assert reached > 0.5
    assert max(report.validation) == pytest.approx(
        mean_metric(split, split.valid, scorer, "recall@5")
    )


def test_the_same_seed_gives_the_same_figures() -> None:
    split = user_split(cycles())
    figures = []
    for _ in range(2):
        model = build_model("comirec_sa", split.sequences, 5, **SETTINGS["comirec_sa"])
        train(model, split, SequenceTraining(steps=20, batch_size=16, validate_every=10, seed=5))
        scorer = model_scorer(model, split.sequences, HISTORY)
        figures.append(evaluate(split, split.test, scorer, (5,)).figures.metrics)
    assert figures[0] == figures[1]


def test_the_finest_attributes_of_an_item_are_kept() -> None:
    many = tuple(range(1, 12))
    sequences = from_events("x", np.array([1, 1]), np.array([3, 4]), attributes={"3": many})
    found = item_table(leave_one_out(sequences)).ids_of(ATTRIBUTES)
    assert found[1].tolist() == list(many[-8:])
    assert not found[2].any()


def test_clicks_of_the_item_table_are_those_of_the_training_events() -> None:
    # Item 9 is also the validation and the test answer of the user: neither has been seen.
    user, item = np.array([1, 1, 1, 2, 2, 2, 2]), np.array([5, 9, 6, 9, 7, 6, 9])
    split = leave_one_out(from_events("x", user, item))
    table = item_table(split)
    assert table.counts[:, 0].tolist() == split.train_counts().tolist()
    assert table.counts[:, 0].sum() == 3


def test_an_unknown_model_and_too_short_users_are_refused() -> None:
    sequences = cycles()
    with pytest.raises(UnknownModel, match="comirec_sa"):
        build_model("comirec_saa", sequences, 0)
    with pytest.raises(ValueError, match="no training user has more than 40 events"):
        Moments(leave_one_out(sequences), HISTORY, SequenceTraining(min_history=40))
