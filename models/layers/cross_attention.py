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
from collections.abc import Sequence
from typing import cast

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
        return attend_together([self], [query], tokens, keep)[0]

    def keyed(self, query: Tensor) -> Tensor:
        """Q W_Q W_K' per head: float[B, q, d] -> float[B, h, q, d]."""
        q = self.query(query).unflatten(-1, (self.heads, self.head_width))
        return torch.einsum("bqhk,hkd->bhqd", q, self._per_head(self.key))

    def mapped(self, mixture: Tensor) -> Tensor:
        """Attended mixtures of tokens float[B, h, q, d] to the result float[B, q, d]."""
        result = torch.einsum("bhqd,hkd->bqhk", mixture, self._per_head(self.value)).flatten(2)
        return result if self.out is None else cast(Tensor, self.out(result))

    def _per_head(self, layer: nn.Linear) -> Tensor:
        return layer.weight.view(self.heads, self.head_width, -1)


def attend_together(
    layers: Sequence[CrossAttention],
    queries: Sequence[Tensor],
    tokens: Tensor,
    keep: Tensor | None = None,
) -> list[Tensor]:
    """Every layer's attention of its queries on the same tokens, in one pass over the tokens.

    Layers have the same width and number of heads. Their own maps are those of the queries and
    mixtures, so only these are computed one by one; arguments and results as of a layer each.
    """
    sizes = [query.shape[1] for query in queries]
    keyed = [layer.keyed(query) for layer, query in zip(layers, queries, strict=True)]
    q = torch.cat(keyed, dim=2) if len(keyed) > 1 else keyed[0]
    scores = torch.einsum("bhqd,bld->bhql", q, tokens) / math.sqrt(layers[0].head_width)
    if keep is not None:
        scores = scores.float().masked_fill(~keep[:, None, None], MASKED)
    weight = torch.softmax(scores, dim=-1).to(tokens.dtype)
    if keep is not None:
        weight = weight * keep.any(1)[:, None, None, None]
    mixture = torch.einsum("bhql,bld->bhqd", weight, tokens)
    parts = mixture.split(sizes, dim=2)
    return [layer.mapped(part) for layer, part in zip(layers, parts, strict=True)]


class MeanAttention(nn.Module):
    """The mean of the mapped tokens for every query: cross attention without its weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, query: Tensor, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Arguments and result as those of `CrossAttention`."""
        if keep is None:
            mean = tokens.mean(1)
        else:
            weight = keep.to(tokens.dtype)
            kept = weight.sum(1, keepdim=True).clamp_min(1.0)
            mean = torch.einsum("bl,bld->bd", weight, tokens) / kept
        return self.value(mean)[:, None].expand(-1, query.shape[1], -1)
