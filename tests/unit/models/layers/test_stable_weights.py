"""Sample weights against dependent interests: estimator, learner, and what they must achieve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.layers.stable_weights import (
    FourierMap,
    dependence,
    draw_map,
    learn_weights,
    median_distance,
)

BATCH, WIDTH = 256, 64


def _interests(seed: int, k: int = 4, copied: float = 0.0) -> tuple[Tensor, Tensor]:
    """float[B, K, d] of independent interests; the first `copied` share has interest 1 = 2."""
    generator = torch.Generator().manual_seed(seed)
    interests = torch.randn(BATCH, k, WIDTH, generator=generator)
    same = torch.arange(BATCH) < copied * BATCH
    interests[same, 1] = interests[same, 0]
    return interests, same


def _uniform(n: int = BATCH) -> Tensor:
    return torch.full((n,), 1.0 / n)


def _exact_hsic(x: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    """tr(K H L H) / B^2 with Gaussian kernels."""
    n = len(x)
    centring = torch.eye(n) - 1.0 / n
    k, length = (torch.exp(-torch.cdist(z, z).square() / (2 * sigma**2)) for z in (x, y))
    return torch.trace(k @ centring @ length @ centring) / n**2


def test_random_features_estimate_the_gaussian_kernel() -> None:
    interests, _ = _interests(0)
    fourier = draw_map(interests, 20_000, torch.Generator().manual_seed(0))
    x = interests[:40, 0]
    exact = torch.exp(-torch.cdist(x, x).square() / (2 * median_distance(interests) ** 2))
    phi = fourier(x)
    torch.testing.assert_close(phi @ phi.T, exact, atol=0.05, rtol=0)


def _dependent(seed: int) -> Tensor:
    """Two interests float[B, 2, d] that follow one cluster, each around centres of its own."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.randint(0, 8, (BATCH,), generator=generator)
    centres = torch.randn(8, 2, WIDTH, generator=generator)
    return centres[cluster] + 0.5 * torch.randn(BATCH, 2, WIDTH, generator=generator)


def _ratios(interests: Tensor, features: int) -> Tensor:
    """Estimate over exact HSIC for 30 draws of the random features."""
    exact = _exact_hsic(interests[:, 0], interests[:, 1], median_distance(interests))
    generator = torch.Generator().manual_seed(2)
    maps = [draw_map(interests, features, generator) for _ in range(30)]
    return torch.stack([dependence(fourier(interests), _uniform()) for fourier in maps]) / exact


@pytest.mark.parametrize("dependent", [False, True])
def test_uniform_dependence_is_hsic(dependent: bool) -> None:
    """Within 40 % at D = 64 (three standard deviations of .13), and right on average."""
    interests = _dependent(0) if dependent else _interests(1, k=2)[0]
    ratios = _ratios(interests, 64)
    assert ((ratios > 0.6) & (ratios < 1.4)).float().mean() > 0.95
    assert 0.9 < ratios.mean() < 1.1
    assert _ratios(interests, 5).std() > 2 * ratios.std() > 2 * _ratios(interests, 1024).std()


def test_dependence_sums_the_squared_weighted_covariances_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(20, 3, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(20, generator=generator, dtype=torch.float64)
    weights /= weights.sum()
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        for j in range(i + 1, 3):
            a = phi[:, i] - weights @ phi[:, i]
            b = phi[:, j] - weights @ phi[:, j]
            expected += (a.T @ torch.diag(weights) @ b).square().sum()
    torch.testing.assert_close(dependence(phi, weights), expected)


def test_dependence_of_equal_interests_exceeds_that_of_independent_ones() -> None:
    values = []
    for copied in (0.0, 0.5, 1.0):
        interests, _ = _interests(0, copied=copied)
        phi = draw_map(interests, 64, torch.Generator().manual_seed(0))(interests)
        values.append(float(dependence(phi, _uniform())))
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("copied", [0.3, 0.6, 0.9])
def test_copied_samples_get_less_weight_and_dependence_falls(copied: float) -> None:
    lowered = 0
    for seed in range(20):
        interests, same = _interests(seed, copied=copied)
        phi = draw_map(interests, 64, torch.Generator().manual_seed(seed))(interests)
        learned = learn_weights(phi, steps=20)
        assert learned.weights[same].mean() < learned.weights[~same].mean()
        assert 0.5 <= learned.effective_share() <= 1
        lowered += int(learned.after < learned.before)
    assert lowered >= 19


def test_learned_weights_are_a_detached_distribution() -> None:
    interests, _ = _interests(0, copied=0.5)
    interests.requires_grad_()
    phi = draw_map(interests, 16, torch.Generator().manual_seed(0))(interests)
    learned = learn_weights(phi)
    assert not learned.weights.requires_grad
    assert learned.weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert (learned.weights > 0).all()
    assert learned.weights.std() > 0
    torch.testing.assert_close(learned.before, dependence(phi, _uniform()))
    torch.testing.assert_close(learned.after, dependence(phi, learned.weights))


def test_the_first_step_descends_the_normalised_objective() -> None:
    """One step from theta = 0 is the negative gradient by the definition, momentum unused."""
    interests, _ = _interests(0, copied=0.5)
    phi = draw_map(interests, 16, torch.Generator().manual_seed(0))(interests)
    theta = torch.zeros(BATCH, requires_grad=True)
    w = theta.softmax(0)
    objective = dependence(phi, w) / dependence(phi, _uniform()) + 0.1 * BATCH * (w @ w)
    (gradient,) = torch.autograd.grad(objective, theta)
    torch.testing.assert_close(learn_weights(phi, steps=1).weights, (-gradient).softmax(0))


def test_the_raw_objective_leaves_the_weights_almost_uniform() -> None:
    interests, _ = _interests(0, copied=0.5)
    phi = draw_map(interests, 64, torch.Generator().manual_seed(0))(interests)
    raw, normal = (learn_weights(phi, objective=o) for o in ("raw", "normalised"))  # type: ignore[arg-type]
    assert raw.effective_share() > 0.9999
    assert normal.effective_share() < 0.999


def test_the_penalty_pulls_towards_uniform() -> None:
    interests, _ = _interests(0, copied=0.5)
    phi = draw_map(interests, 64, torch.Generator().manual_seed(0))(interests)
    loose, tight = (learn_weights(phi, penalty=p).effective_share() for p in (0.0, 10.0))
    assert loose < tight


def test_one_interest_has_nothing_to_depend_on() -> None:
    interests = torch.randn(BATCH, 1, WIDTH)
    learned = learn_weights(draw_map(interests, 16, None)(interests))
    assert torch.equal(learned.weights, _uniform())


def test_equal_users_keep_uniform_weights() -> None:
    interests = torch.ones(8, 3, 4)
    learned = learn_weights(draw_map(interests, 16, None)(interests))
    torch.testing.assert_close(learned.weights, _uniform(8), atol=1e-3, rtol=0)
    assert torch.isfinite(learned.weights).all()


def test_the_bandwidth_is_the_median_distance_of_the_first_rows() -> None:
    points = torch.tensor([0.0, 1.0, 3.0])[:, None, None]
    assert median_distance(points).item() == 2
    many = torch.cat([torch.randn(64, 4, 3), torch.full((64, 4, 3), 1e6)])
    assert median_distance(many) < 10
    fourier = FourierMap(torch.zeros(3, 2), torch.zeros(3))
    torch.testing.assert_close(fourier(torch.randn(5, 2)), torch.full((5, 3), (2 / 3) ** 0.5))
