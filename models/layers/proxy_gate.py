"""The proxy gated unit of INFNet (arXiv 2508.11565v1; specs/ranking_models.md section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.mlp import mlp


class ProxyGate(nn.Module):
    """PGU(X, P) = X * sigmoid(MLP(flatten P)): one gate in R^d, the same for every token of X."""

    def __init__(self, proxies: int, width: int, layers: int = 2) -> None:
        super().__init__()
        self.gate = mlp(proxies * width, [width] * (layers - 1), width)

    def forward(self, tokens: Tensor, proxies: Tensor) -> Tensor:
        """Tokens float[B, n, d], proxies float[B, p, d] -> float[B, n, d]."""
        return tokens * torch.sigmoid(self.gate(proxies.flatten(1)))[:, None]
