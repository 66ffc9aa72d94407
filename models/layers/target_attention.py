"""Attention of the candidate on the user's history (DIN, KDD'18, arXiv 1706.06978, eq. 3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.layers.mlp import mlp


class TargetAttention(nn.Module):
    """sum_t a(k_t, q) k_t with a = MLP(k, q, k * q); the weights are not normalised (section 4.3).

    The paper's interaction of k and q is their outer product, common code's their difference
    (which is linear in k and q and so within reach of the first layer) and their product. ReLU
    stands for Dice, which would mix rows. The first layer's share of k is computed once per user.
    """

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.key = nn.Linear(width, hidden[0])
        self.query = nn.Linear(width, hidden[0], bias=False)
        self.product = nn.Linear(width, hidden[0], bias=False)
        self.weight = mlp(hidden[0], hidden[1:], 1)

    def key_part(self, keys: Tensor) -> Tensor:
        """float[B, L, k] -> float[B, L, h]."""
        return cast(Tensor, self.key(keys))

    def forward(
        self, query: Tensor, keys: Tensor, keep: Tensor, key_part: Tensor | None = None
    ) -> Tensor:
        """Query float[N, k] on keys float[N, L, k] where keep bool[N, L] -> float[N, k].

        Zeros for a row without history. `key_part` float[N, L, h] saves computing it.
        """
        hidden = self.key_part(keys) if key_part is None else key_part
        hidden = hidden + self.query(query)[:, None] + self.product(keys * query[:, None])
        weight = self.weight(torch.relu(hidden)).squeeze(2) * keep
        return torch.einsum("nl,nlk->nk", weight, keys)
