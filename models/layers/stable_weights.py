"""Sample weights that make a batch's interests independent of each other (DESMIL-R).

Dependence is measured by random Fourier features: uniformly weighted, `dependence` estimates the
sum over pairs of interests of HSIC_b(I_i, I_j) = tr(K H L H) / B^2. The weight learner follows
StableNet ("Deep Stable Learning for Out-Of-Distribution Generalization", CVPR'21, arXiv
2104.07876) with whole interest vectors as blocks. This is a reconstruction: see
`models/retrieval/desmil.py`.

All interests go through one random map. Where two of them are nearly equal the errors of their
kernels are too, and the estimate exceeds HSIC: 2.3 times at correlation .9, D = 64, d = 64, B = 256
(1.0 for independent interests). Copied interests are therefore seen all the more.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

BANDWIDTH_ROWS = 256
Objective = Literal["normalised", "raw"]


class FourierMap(NamedTuple):
    """phi(x) = sqrt(2/D) cos(Omega x + beta): E[phi(x)'phi(y)] = exp(-|x - y|^2 / (2 sigma^2))."""

    frequency: Tensor  # Omega float[D, d], N(0, sigma^-2)
    phase: Tensor  # beta float[D], U(0, 2 pi)

    def __call__(self, interests: Tensor) -> Tensor:
        """float[..., d] -> float[..., D]."""
        angle = interests @ self.frequency.T + self.phase
        return (2.0 / len(self.phase)) ** 0.5 * torch.cos(angle)


class StableWeights(NamedTuple):
    """Weights float[B] that sum to 1, and the dependence before (uniform) and after."""

    weights: Tensor
    before: Tensor
    after: Tensor

    def effective_share(self) -> Tensor:
        """ESS / B = 1 / (B sum w^2), in (0, 1]; 1 for uniform weights."""
        return 1.0 / (len(self.weights) * self.weights.square().sum())


def median_distance(interests: Tensor) -> Tensor:
    """sigma: median distance between the interests float[B, K, d] of the batch (first 256 rows)."""
    rows = interests.detach().flatten(0, 1)[:BANDWIDTH_ROWS]
    return torch.pdist(rows).median().clamp_min(1e-6)


def draw_map(interests: Tensor, features: int, generator: torch.Generator | None) -> FourierMap:
    """A map of `features` D random features with the batch's bandwidth (drawn on the CPU)."""
    frequency = torch.randn(features, interests.shape[-1], generator=generator)
    phase = 2 * torch.pi * torch.rand(features, generator=generator)
    return FourierMap(frequency.to(interests) / median_distance(interests), phase.to(interests))


def dependence(features: Tensor, weights: Tensor) -> Tensor:
    """L_D(w) = sum_{i<j} |Sigma^w_ij|_F^2 of phi float[B, K, D] and weights float[B], a scalar.

    Sigma^w_ij = sum_b w_b phi(I_bi) phi(I_bj)' - mu_i mu_j' with mu_i = sum_b w_b phi(I_bi).
    Dimensions within one interest may depend on each other.
    """
    k = features.shape[1]
    i, j = torch.triu_indices(k, k, 1, device=features.device)
    mean = torch.einsum("b,bkd->kd", weights, features)
    left = features[:, i].permute(1, 2, 0) * weights
    product = left @ features[:, j].transpose(0, 1)
    return (product - mean[i][:, :, None] * mean[j][:, None, :]).square().sum()


def learn_weights(
    features: Tensor,
    steps: int = 10,
    penalty: float = 0.1,
    objective: Objective = "normalised",
    learning_rate: float = 1.0,
    momentum: float = 0.9,
) -> StableWeights:
    """w = softmax(theta) after `steps` SGD steps from theta = 0 on phi float[B, K, D] (detached).

    normalised: L_D(w) / L_D(1/B) + penalty * B * sum w^2, the last term penalty / (ESS/B);
    raw: L_D(w) + penalty * sum w^2, whose first term is so small that w stays almost uniform.
    With one interest, or none that depends on another, the weights are uniform.
    """
    features = features.detach()
    batch = len(features)
    uniform = torch.full((batch,), 1.0 / batch, device=features.device, dtype=features.dtype)
    before = dependence(features, uniform)
    tiny = torch.finfo(features.dtype).tiny
    normal = objective == "normalised"
    scale, factor = (before.clamp_min(tiny), penalty * batch) if normal else (1.0, penalty)
    theta = torch.zeros_like(uniform)
    velocity = torch.zeros_like(uniform)
    if features.shape[1] == 1 or before <= tiny:
        return StableWeights(uniform, before, before)
    with torch.enable_grad():
        for _ in range(steps):
            theta.requires_grad_()
            weights = theta.softmax(0)
            loss = dependence(features, weights) / scale + factor * weights.square().sum()
            (gradient,) = torch.autograd.grad(loss, theta)
            velocity = momentum * velocity + gradient
            theta = theta.detach() - learning_rate * velocity
    weights = theta.detach().softmax(0)
    return StableWeights(weights, before, dependence(features, weights))
