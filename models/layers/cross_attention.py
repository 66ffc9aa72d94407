"""Cross attention of a few queries on many tokens, as INFNet uses it.

"INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", arXiv
2508.11565v1; `specs/ranking_models.md` section 3.3. CA(Q, K) = softmax(Q W_Q (K W_K)' / sqrt(d_k))
(K W_V), without bias.

A proxy set is a handful of queries on up to hundreds of tokens. The key map is therefore applied to
the queries, Q W_Q (K W_K)' = (Q W_Q W_K') K', and the value map to the attended mixture, A (K W_V)
= (A K) W_V: the same numbers up to the order of summation, and no d x d map of any token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MASKED = -1e9  # the score of a padded token: its weight is exactly 0 beside any real token


class CrossAttention(nn.Module):
    """CA with `heads` heads of d_k = width / heads; `out_proj` adds an output map."""

    def __init__(self, width: int, heads: int = 1, out_proj: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        self.heads, self.head_width = heads, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False) if out_proj else None

    def forward(self, query: Tensor, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """float[B, q, d] on float[B, l, d] -> float[B, q, d].

        `keep` bool[B, l] is False for padding. A row that keeps nothing gets zeros.
        """
        per_head = (self.heads, self.head_width, -1)
        q = self.query(query).unflatten(-1, (self.heads, self.head_width))
        q = torch.einsum("bqhk,hkd->bhqd", q, self.key.weight.view(per_head))
        scores = torch.einsum("bhqd,bld->bhql", q, tokens) / math.sqrt(self.head_width)
        if keep is not None:
            scores = scores.float().masked_fill(~keep[:, None, None], MASKED)
        weight = torch.softmax(scores, dim=-1).to(tokens.dtype)
        if keep is not None:
            weight = weight * keep.any(1)[:, None, None, None]
        mixture = torch.einsum("bhql,bld->bhqd", weight, tokens)
        result = torch.einsum("bhqd,hkd->bqhk", mixture, self.value.weight.view(per_head))
        result = result.flatten(2)
        return result if self.out is None else self.out(result)
