"""Self-attentive multi-interest extraction (ComiRec-SA).

"Controllable Multi-Interest Framework for Recommendation", KDD'20, arXiv 2005.09347, section 3.2;
what is weighted (values without positions) and the biases follow the authors' released code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelfAttentiveInterests(nn.Module):
    """V = A H with A = softmax over the events of W2' tanh(W1 (H + P)').

    P is one row per position, W1 has 4d rows. The values are H *without* P, so that an interest
    stays in the space of item embeddings.
    """

    def __init__(
        self,
        width: int,
        interests: int,
        history: int,
        bias: bool = True,
        values_with_position: bool = False,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(history, width))
        nn.init.xavier_uniform_(self.position)
        self.hidden = nn.Linear(width, 4 * width, bias=bias)
        self.heads = nn.Linear(4 * width, interests, bias=bias)
        self.values_with_position = values_with_position

    def keys(self, history: Tensor) -> Tensor:
        """H + P: float[B, m, d] for up to `history` positions m."""
        return history + self.position[: history.shape[1]]

    def attention(self, history: Tensor, mask: Tensor) -> Tensor:
        """A float[B, K, m] of H float[B, m, d] and M bool[B, m].

        Each row sums to 1 over the valid events and is zero on padding; zero throughout for a user
        without events.
        """
        logits = self.heads(torch.tanh(self.hidden(self.keys(history)))).transpose(1, 2)
        valid = mask[:, None]
        logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
        return logits.softmax(dim=2) * valid

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """V float[B, K, d]; zero for a user without events."""
        values = self.keys(history) if self.values_with_position else history
        # A weight of zero does not silence a padding row that holds inf or NaN.
        return self.attention(history, mask) @ values.masked_fill(~mask[:, :, None], 0.0)
