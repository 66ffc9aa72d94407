"""Interest centres refined step by step (HCN-R), a reconstruction: see `models/retrieval/hcn.py`.

Centres start from self-attention and are pulled towards the events they win: the events' weights
are a softmax over the INTERESTS, so centres compete for events and are meant to move apart.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from models.layers.self_attentive_interests import SelfAttentiveInterests

Init = Literal["sa", "learned"]


class InterestRefinement(nn.Module):
    """One step C -> t * C + (1 - t) * U with U = A H and the gate t = sigmoid(Wg [C; U] + bg)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width, width)

    def attention(self, centres: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """A float[B, K, n] of centres float[B, K, d] and keys H + P float[B, n, d].

        Softmax over the interests of (C Wq)((H+P) Wk)' / sqrt(d), times the mask, then each row
        divided by its sum + 1e-8: rows sum to 1 over the valid events, 0 on padding.
        """
        scores = self.query(centres) @ self.key(keys).transpose(1, 2)
        won = (scores / math.sqrt(keys.shape[2])).softmax(dim=1).masked_fill(~mask[:, None], 0.0)
        return won / (won.sum(2, keepdim=True) + 1e-8)

    def forward(self, centres: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Centres float[B, K, d]; `values` H must hold zeros on padding."""
        update = self.attention(centres, keys, mask) @ values
        keep = torch.sigmoid(self.gate(torch.cat([centres, update], dim=2)))
        return keep * centres + (1 - keep) * update


class HierarchicalInterests(nn.Module):
    """G(H, M): initial centres and `layers` refinements; with none of them it is ComiRec-SA.

    `init` "learned" starts from K trained vectors, the same for every user, instead of from
    self-attention; the positions P exist in both.
    """

    def __init__(
        self, width: int, interests: int, history: int, layers: int, init: Init = "sa"
    ) -> None:
        super().__init__()
        if init == "learned" and not layers:
            raise ValueError("learned centres without a layer do not depend on the user")
        self.initial: SelfAttentiveInterests | LearnedCentres
        if init == "sa":
            self.initial = SelfAttentiveInterests(width, interests, history)
        else:
            self.initial = LearnedCentres(width, interests, history)
        self.refinements = nn.ModuleList(InterestRefinement(width) for _ in range(layers))

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """H float[B, n, d], M bool[B, n] -> centres float[B, K, d]."""
        centres = self.initial(history, mask)
        values = history.masked_fill(~mask[:, :, None], 0.0)
        keys = self.initial.keys(values)
        for refine in self.refinements:
            centres = refine(centres, keys, values, mask)
        return centres


class LearnedCentres(nn.Module):
    """K trained centres in the place of self-attention."""

    def __init__(self, width: int, interests: int, history: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(history, width))
        self.centres = nn.Parameter(torch.empty(interests, width))
        nn.init.xavier_uniform_(self.position)
        nn.init.xavier_uniform_(self.centres)

    def keys(self, history: Tensor) -> Tensor:
        """H + P: float[B, m, d] for up to `history` positions m."""
        return history + self.position[: history.shape[1]]

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """float[B, K, d]; zero for a user without events."""
        return self.centres.expand(len(history), -1, -1) * mask.any(1)[:, None, None]
