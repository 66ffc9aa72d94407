"""The self-attention block of a sequence model whose sequences run from new to old.

"Self-Attentive Sequential Recommendation", ICDM'18, arXiv 1808.09781, eq. 2-8: scaled dot-product
attention (no biases, no output projection), then a point-wise feed-forward network; each is
x + Dropout(g(LayerNorm(x))).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def older_or_self(mask: Tensor) -> Tensor:
    """bool[B, 1, n, n]: query position p may look at q where q is p or an older event.

    `mask` bool[B, n] marks events, newest first. Padding sees itself only, so that its (unused) row
    stays finite, and nothing sees padding.
    """
    n = mask.shape[1]
    older = torch.ones(n, n, dtype=torch.bool, device=mask.device).triu()
    itself = torch.eye(n, dtype=torch.bool, device=mask.device)
    return ((older & mask[:, None, :]) | itself)[:, None]


class CausalBlock(nn.Module):
    """5 d^2 + 6 d parameters: three projections, two feed-forward maps and two layer norms."""

    def __init__(self, width: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        """float[B, n, d] and `visible` bool[B, 1, n, n] (query, key) -> float[B, n, d]."""
        batch, n, width = states.shape
        dropout = self.dropout if self.training else 0.0
        projected = self.project(self.attention_norm(states))
        query, key, value = projected.view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=dropout
        )
        attended = attended.transpose(1, 2).reshape(batch, n, width)
        states = states + functional.dropout(attended, dropout)
        hidden = self.feed_forward(self.feed_forward_norm(states))
        return states + functional.dropout(hidden, dropout)
