"""Dynamic routing from behaviours to interest capsules (MIND, ComiRec-DR).

"Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM'19, arXiv
1904.08030; "Controllable Multi-Interest Framework for Recommendation", KDD'20, arXiv 2005.09347,
section 3.2. That only the last iteration carries gradient is the ComiRec authors' released code.
The equations are cited by the sections of the project's specification (retrieval_models.md), which
gives no numbers of the papers' own: 4.3 for ComiRec-DR, 5.3 for MIND.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squash(capsules: Tensor) -> Tensor:
    """|s|^2 / (1 + |s|^2) * s / sqrt(|s|^2 + 1e-9) over the last dimension: length below 1.

    v_k of section 4.3, u_k of 5.3.
    """
    square = capsules.square().sum(-1, keepdim=True)
    return square / (1 + square) * capsules / (square + 1e-9).sqrt()


def coupling(logits: Tensor, mask: Tensor, active: Tensor | None = None) -> Tensor:
    """c float[B, K, n]: softmax of the logits over the INTERESTS, zero on padding.

    c of section 4.3, w of 5.3.
    `mask` bool[B, n]; `active` bool[B, K] leaves a user's other capsules out of the competition
    (at least one per user must be active).
    """
    if active is not None:
        logits = logits.masked_fill(~active[:, :, None], float("-inf"))
    return logits.softmax(dim=1) * mask[:, None]


def route(
    votes: Tensor,
    logits: Tensor,
    mask: Tensor,
    iterations: int = 3,
    active: Tensor | None = None,
) -> Tensor:
    """Capsules float[B, K, d] after `iterations` rounds of routing by agreement.

    `votes` u_hat float[B, n, K, d], or [B, n, 1, d] when all capsules share them; `logits` b
    float[B, K, n] at the start; the logits grow by <v_k, u_hat_ki> after every round but the last.
    The votes are detached in all rounds but the last, so no gradient goes through the coupling.
    Votes are W_ik e_i in section 4.3 and S e_i, the same for all k, in 5.3.
    """
    votes = votes.masked_fill(~mask[:, :, None, None], 0.0)
    frozen = votes.detach()
    for _ in range(iterations - 1):
        capsules = _capsules(coupling(logits, mask, active), frozen)
        logits = logits + torch.einsum("bkd,bnkd->bkn", capsules, frozen.expand_as(votes))
    return _capsules(coupling(logits, mask, active), votes)


def _capsules(weights: Tensor, votes: Tensor) -> Tensor:
    """squash(sum_i c_ki u_hat_ki): s_k and v_k of section 4.3, z_k and u_k of 5.3."""
    if votes.shape[2] == 1:
        return squash(weights @ votes[:, :, 0])
    return squash(torch.einsum("bkn,bnkd->bkd", weights, votes))
