"""The simulated world obeys the laws that it declares, so that its truth can be relied on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from models.data import simulator
from models.data.errors import DataError
from models.data.sequences import Cases
from models.data.simulator import WorldConfig, build_world, draw_users, related_pairs
from models.data.tables import FieldTable
from models.training.metrics import auc, calibration_error, list_metrics, top_k
from models.training.prepared import sequence_evaluation

CONFIG = WorldConfig(clusters=12, items_per_cluster=40)


@pytest.fixture(scope="module")
def world() -> simulator.World:
    return build_world(CONFIG)


@pytest.fixture(scope="module")
def log(world: simulator.World) -> simulator.SimulatedTable:
    return simulator.table(world, 120_000, users=1500)


@pytest.fixture(scope="module")
def shifted(world: simulator.World) -> simulator.ShiftedSequences:
    return simulator.sequences(world, 1500, 200, 600, mean_length=20)


def column(table: FieldTable, name: str) -> np.ndarray:
    return table.categorical[:, [field.name for field in table.fields].index(name)]


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    first, again, other = (
        simulator.table(build_world(replace(CONFIG, seed=seed)), 2000, users=50).table
        for seed in (1, 1, 2)
    )
    assert (first.categorical == again.categorical).all()
    assert (first.labels == again.labels).all()
    assert (first.labels != other.labels).any()


def test_items_show_their_cluster_as_often_as_the_noise_leaves() -> None:
    world = build_world(replace(CONFIG, items_per_cluster=1000))
    right = (world.category == world.cluster).mean()
    assert right == pytest.approx(1 - CONFIG.feature_noise * (1 - 1 / 12), abs=0.01)
    assert (world.author // CONFIG.authors_per_cluster == world.cluster).mean() > 0.85
    assert world.tags[:, 0].min() > 0
    for tags in world.tags[:200]:
        named = tags[tags > 0]
        assert len(set(named)) == len(named)
        assert (tags[len(named) :] == 0).all()


def test_related_pairs_by_hand() -> None:
    sets = np.array([[0, 1, 2, 3], [1, 2, -1, -1], [5, 4, -1, -1], [0, 2, 4, -1], [2, 0, 3, -1]])
    assert related_pairs(sets).tolist() == [2, 0, 1, 0, 1]


@pytest.mark.parametrize("rho", [5, 1.0, 0.2])
def test_rho_is_the_odds_factor_of_a_related_pair(world: simulator.World, rho: float) -> None:
    users = draw_users(world, 20_000, rho, np.random.default_rng(0))
    size = (users.active >= 0).sum(axis=1)
    two = users.active[size == 2]
    related, others = 6, 12 * 11 // 2 - 6
    expected = rho * related / (rho * related + others)
    found = int(related_pairs(two).sum())
    assert binom.ppf(1e-5, len(two), expected) <= found <= binom.ppf(1 - 1e-5, len(two), expected)
    # Whatever rho is: two, three or four interests, equally often.
    assert chisquare(np.bincount(size)[2:5]).pvalue > 1e-5
    assert users.mix.sum(axis=1) == pytest.approx(1)
    assert (users.mix[users.active < 0] == 0).all()


def test_test_users_out_of_distribution_lack_the_related_pairs_of_training(
    shifted: simulator.ShiftedSequences,
) -> None:
    pairs = related_pairs(shifted.users.active)
    train, iid, ood = (pairs[g].mean() for g in (shifted.train, shifted.iid, shifted.ood))
    assert iid == pytest.approx(train, abs=0.1)
    assert ood < train / 5


def test_sequences_hold_each_item_once_and_only_of_the_users_interests(
    world: simulator.World, shifted: simulator.ShiftedSequences
) -> None:
    data, users = shifted.sequences, shifted.users
    assert len(data) == len(users) == 1500 + 200 + 2 * 600
    assert data.lengths.min() >= simulator.MIN_EVENTS
    assert data.lengths.mean() == pytest.approx(20, abs=0.5)
    user = np.repeat(np.arange(len(data)), data.lengths)
    assert len(np.unique(user * (data.num_items + 1) + data.items)) == len(data.items)
    cluster = world.cluster[shifted.item[data.items]]
    assert (users.affinity(user, cluster) > 0).all()


def test_the_split_trains_on_training_users_and_asks_the_chosen_test_users(
    shifted: simulator.ShiftedSequences,
) -> None:
    iid, ood = shifted.split("iid"), shifted.split("ood")
    assert (iid.train_start == ood.train_start).all()
    assert set(iid.test.user) == set(shifted.iid)
    assert set(ood.test.user) == set(shifted.ood)
    assert iid.train_end.max() <= iid.valid.start.min() < ood.test.start.min()


def next_item_probability(
    world: simulator.World, users: simulator.Users, user: np.ndarray
) -> np.ndarray:
    """float64[N, num_items]: the oracle's P(item | interests), which no retrieval model can beat.

    Not conditioned on the previous cluster (`stay`) nor on what was consumed already.
    """
    weight = np.zeros((len(user), world.config.clusters))
    rows = np.arange(len(user))
    for slot in range(simulator.MAX_INTERESTS):
        used = users.active[user, slot] >= 0
        weight[rows[used], users.active[user[used], slot]] = users.mix[user[used], slot]
    return (weight[:, :, None] * world.rank_probability).reshape(len(user), -1)


def test_knowing_the_interests_beats_popularity(
    world: simulator.World, shifted: simulator.ShiftedSequences
) -> None:
    split = shifted.split("iid")
    data, cases = shifted.sequences, split.test
    targets = [data.items[a:b] for a, b in zip(cases.cut, cases.end, strict=True)]
    seen = [data.items[a:b] for a, b in zip(cases.start, cases.cut, strict=True)]
    truth = next_item_probability(world, shifted.users, cases.user)
    assert truth.sum(axis=1) == pytest.approx(1)
    scores = np.concatenate([np.zeros((len(cases), 1)), truth[:, shifted.item[1:]]], axis=1)
    popular = np.tile(split.train_counts().astype(float), (len(cases), 1))

    def recall(scores: np.ndarray) -> float:
        return list_metrics(top_k(scores, 50, seen), targets, (50,))["recall@50"].mean()

    assert recall(scores) > 1.5 * recall(popular)


def test_popularity_inside_a_cluster_follows_the_declared_exponent(
    log: simulator.SimulatedTable,
) -> None:
    item = column(log.table, "item_id")
    rank = (item[item > 0] - 1) % CONFIG.items_per_cluster + 1
    counts = np.bincount(rank)[1:]
    slope = np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-CONFIG.zipf, abs=0.05)


def test_clicks_fall_with_the_position_as_declared(log: simulator.SimulatedTable) -> None:
    position = column(log.table, "position")
    click = log.table.labels[:, 0]
    rate = np.array([click[position == p].mean() for p in range(1, 11)])
    assert (np.diff(rate[[0, 1, 3, 9]]) < 0).all()
    slope = np.polyfit(np.log(np.arange(1, 11)), np.log(rate), 1)[0]
    assert slope == pytest.approx(-CONFIG.position_bias, abs=0.06)
    assert log.examined == pytest.approx(position**-0.7)


def test_the_true_probabilities_are_calibrated_and_rank_better_than_any_feature(
    log: simulator.SimulatedTable,
) -> None:
    table = log.table
    train, test = table.rows("train"), table.rows("test")
    for t in range(len(simulator.TASKS)):
        labels, truth = table.labels[:, t], log.probabilities[:, t]
        assert calibration_error(labels, truth) < 0.01
        oracle = auc(labels[test], truth[test])
        rivals = [table.dense[test, 0], log.affinity[test], log.examined[test]]
        for ids in table.categorical.T:  # each field as the rate of its values in training
            shown = np.bincount(ids[train], minlength=ids.max() + 1)
            rate = np.bincount(ids[train], labels[train], minlength=len(shown)) / (shown + 20)
            rivals.append(rate[ids[test]])
        assert oracle > max(auc(labels[test], r) for r in rivals) + 0.02


def test_like_and_long_view_happen_to_clicks_only(log: simulator.SimulatedTable) -> None:
    click, like, long_view = log.table.labels.T
    assert (like <= click).all()
    assert (long_view <= click).all()
    assert 0 < like.mean() < click.mean()
    assert (log.probabilities[:, 1:] <= log.probabilities[:, :1]).all()


def test_what_the_training_part_does_not_hold_is_unknown(log: simulator.SimulatedTable) -> None:
    table = log.table
    train, test = table.rows("train"), table.rows("test")
    for name in ("user_id", "item_id"):
        ids = column(table, name)
        assert set(ids[test]) <= set(ids[train]) | {0}
    assert table.time_ms[train].max() < table.time_ms[test].min()


def test_a_history_is_what_the_user_clicked_before(log: simulator.SimulatedTable) -> None:
    table = log.table
    item = column(table, "item_id")
    for row in table.rows("test")[:20]:
        before = (table.user == table.user[row]) & (table.time_ms < table.time_ms[row])
        clicked = item[before & (table.labels[:, 0] > 0) & (item > 0)]
        expected = clicked[::-1][:50]
        assert table.history["clicks"].ids[row][: len(expected)].tolist() == expected.tolist()


def test_events_are_the_impressions_of_the_table(
    world: simulator.World, log: simulator.SimulatedTable
) -> None:
    frame = simulator.events(world, 120_000, users=1500)
    assert (frame["event_time_ms"].to_numpy() == log.table.time_ms).all()
    assert (frame["like"].to_numpy() == (log.table.labels[:, 1] > 0)).all()


@settings(max_examples=15)
@given(
    st.integers(4, 8).map(lambda half: 2 * half),
    st.integers(20, 60),
    st.floats(0.1, 10),
    st.integers(0, 5),
)
def test_any_world_passes_the_checks_of_its_tables(
    clusters: int, items: int, rho: float, seed: int
) -> None:
    world = build_world(WorldConfig(clusters, items, rho=rho, seed=seed))
    simulator.table(world, 600, users=30).table.check()
    simulator.sequences(world, 30, 10, 10, mean_length=8).sequences.check()


def test_a_world_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="even number"):
        build_world(WorldConfig(clusters=9))
    with pytest.raises(DataError, match="too few"):
        simulator.sequences(build_world(WorldConfig(items_per_cluster=2)), 50, 5, 5)


def test_what_training_taught_of_co_occurrence_is_worth_less_under_shift() -> None:
    world = build_world(replace(CONFIG, rho=20.0))
    shifted = simulator.sequences(world, 2000, 50, 2000, mean_length=8)

    def recall(test: str) -> tuple[float, float]:
        split = shifted.split(test)

        def truth(cases: Cases) -> np.ndarray:
            known = next_item_probability(world, shifted.users, cases.user)
            return np.pad(known[:, shifted.item[1:]], ((0, 0), (1, 0)))

        scorers = (sequence_evaluation.counting_scorer(split, "ease"), truth)
        learned, oracle = (
            sequence_evaluation.mean_metric(split, split.test, scorer, "recall@20")
            for scorer in scorers
        )
        return learned, oracle

    (learned_iid, oracle_iid), (learned_ood, oracle_ood) = recall("iid"), recall("ood")
    assert learned_iid - learned_ood > 0.02
    # Nothing is lost for who knows the interests: the task itself is no harder.
    assert oracle_iid - oracle_ood < 0.02
    assert oracle_ood > learned_ood
