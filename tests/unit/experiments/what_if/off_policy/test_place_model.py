"""The model of a doubly robust estimate: sensible where it saw data, finite where it saw none."""

import numpy as np
import pytest

from services.experiments.what_if.off_policy.place_model import BINS, PlaceModel

EXAMINATION = np.array([1.0, 0.5, 0.2])


def shown(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, chances and clicks by a position-based model whose attraction is the value."""
    generator = np.random.default_rng(seed)
    values = generator.random((n, 3))
    chances = values * EXAMINATION
    return values, chances, (generator.random((n, 3)) < chances).astype(float)


def test_it_learns_places_and_values() -> None:
    model = PlaceModel.fit(*shown(40_000)[::2])
    values, chances, _ = shown(500, seed=1)
    assert np.abs(model.of_shown(values) - chances).max() < 0.1
    assert np.corrcoef(model.of_shown(values).reshape(-1), chances.reshape(-1))[0, 1] > 0.97


def test_places_without_an_item_are_no_data_and_earn_nothing() -> None:
    values, _, clicks = shown(1_000)
    filled = np.hstack([values, np.full((1_000, 1), np.nan)])
    model = PlaceModel.fit(filled, np.hstack([clicks, np.zeros((1_000, 1))]))
    np.testing.assert_allclose(model.table[:3], PlaceModel.fit(values, clicks).table)
    assert (model.of_shown(filled)[:, 3] == 0).all()


def test_a_policy_is_expected_to_earn_the_mean_over_what_it_shows() -> None:
    values, _, clicks = shown(2_000)
    model = PlaceModel.fit(values, clicks)
    ranked = np.sort(np.random.default_rng(2).random((5, 6)))[:, ::-1]
    marginals = np.random.default_rng(3).dirichlet(np.ones(6), size=3)
    expected = np.zeros((5, 3))
    for row, place, rank in np.ndindex(5, 3, 6):
        of_item = model.of_shown(np.full((1, 3), ranked[row, rank]))[0, place]
        expected[row, place] += marginals[place, rank] * of_item
    np.testing.assert_allclose(model.of_policy(ranked, marginals), expected, rtol=1e-12)


def test_a_policy_that_shows_what_was_shown_is_expected_the_same() -> None:
    values, _, clicks = shown(300)
    model = PlaceModel.fit(values, clicks)
    np.testing.assert_allclose(model.of_policy(values, np.eye(3)), model.of_shown(values))


def test_no_reward_and_one_value_are_no_error() -> None:
    values = np.full((50, 3), 0.25)
    assert (PlaceModel.fit(values, np.zeros((50, 3))).of_shown(values) == 0).all()
    model = PlaceModel.fit(values, np.ones((50, 3)))
    assert model.of_shown(values) == pytest.approx(1)
    assert model.table.shape == (3, BINS)
    assert np.isfinite(model.of_shown(np.array([[0.0, 9.0, -9.0]]))).all()
