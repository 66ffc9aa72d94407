"""Which of a user's interest vectors answers for a target, and how alike the vectors are.

Hard readout: "Controllable Multi-Interest Framework for Recommendation", KDD'20, arXiv 2005.09347,
eq. 5; power readout (label-aware attention): MIND, CIKM'19, arXiv 1904.08030.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def hard_readout(interests: Tensor, target: Tensor) -> Tensor:
    """v_k* float[B, d] with k* = argmax_k <v_k, e_target>: only it enters the loss.

    `interests` float[B, K, d], `target` float[B, d]. The choice itself has no gradient.
    """
    scores = torch.einsum("bkd,bd->bk", interests.detach(), target.detach())
    best = scores.argmax(dim=1)
    return interests[torch.arange(len(interests), device=interests.device), best]


def power_readout(interests: Tensor, target: Tensor, power: float) -> Tensor:
    """V softmax(pow(V' e_target, p)), float[B, d]; pow keeps the sign of a negative product.

    p = 0 weighs all interests equally. Once the best product exceeds 1, a larger p comes closer to
    the hard readout; while all lie within (-1, 1), a large p comes closer to equal weights instead.
    """
    scores = torch.einsum("bkd,bd->bk", interests, target).double()
    if power == 0:
        logits = torch.zeros_like(scores)
    else:
        # |s|^p has no finite slope at 0 for p < 1; beyond 1e150 float64 overflows.
        size = scores.abs().clamp_min(1e-12).pow(power).clamp_max(1e150)
        logits = scores.sign() * size
    weights = logits.softmax(dim=1).to(interests.dtype)
    return torch.einsum("bk,bkd->bd", weights, interests)


def interest_cosine(interests: Tensor) -> Tensor:
    """Mean cosine of two different interests of a user, a scalar; NaN for a single interest."""
    gram = _cosines(interests)
    k = gram.shape[1]
    different = gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)
    return (different / (k * (k - 1)) if k > 1 else different * float("nan")).mean()


def overlap_penalty(interests: Tensor) -> Tensor:
    """|V^V^' - I|_F^2 / (K (K - 1)) with rows of unit length, averaged over users (a scalar).

    Zero for orthogonal interests, 1 for identical ones; needs K > 1.
    """
    gram = _cosines(interests)
    k = gram.shape[1]
    identity = torch.eye(k, device=gram.device, dtype=gram.dtype)
    return (gram - identity).square().sum((1, 2)).mean() / (k * (k - 1))


def _cosines(interests: Tensor) -> Tensor:
    """float[B, K, K] of interests float[B, K, d]."""
    unit = functional.normalize(interests, dim=2)
    return unit @ unit.transpose(1, 2)
