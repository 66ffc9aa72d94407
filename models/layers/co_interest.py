"""Long-term interests completed by short-term ones (HCN-R's co-interest network).

A reconstruction: see `models/retrieval/hcn.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CoInterest(nn.Module):
    """V = g * V_long + (1 - g) * X with X = softmax over the short interests of S, times V_short.

    S = (V_long Wc) V_short' / sqrt(d), g = sigmoid(Wo [V_long; X; profile] + bo). With `both` the
    short interests are completed by the long ones in the same way, through a gate of their own.
    """

    def __init__(self, width: int, profile_width: int = 0, both: bool = False) -> None:
        super().__init__()
        self.affinity = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width + profile_width, width)
        self.short_gate = nn.Linear(2 * width + profile_width, width) if both else None

    def forward(
        self, long: Tensor, short: Tensor, has_short: Tensor, profile: Tensor | None = None
    ) -> Tensor:
        """float[B, K, d] each (`profile` float[B, p]) -> float[B, K, d], [B, 2K, d] with `both`.

        Where `has_short` bool[B] is False the result is V_long itself (g = 1; twice with `both`,
        which changes no maximum over the interests): the formula would return g * V_long.
        """
        scores = self.affinity(long) @ short.transpose(1, 2) / math.sqrt(long.shape[2])
        joined = _blend(self.gate, long, scores.softmax(dim=2) @ short, profile)
        joined = torch.where(has_short[:, None, None], joined, long)
        if self.short_gate is None:
            return joined
        mirrored = scores.transpose(1, 2).softmax(dim=2) @ long
        other = _blend(self.short_gate, short, mirrored, profile)
        other = torch.where(has_short[:, None, None], other, long)
        return torch.cat([joined, other], dim=1)


def _blend(gate: nn.Linear, own: Tensor, other: Tensor, profile: Tensor | None) -> Tensor:
    """g * own + (1 - g) * other, the gate seeing both and the user's profile."""
    parts = [own, other]
    if profile is not None:
        parts.append(profile[:, None].expand(-1, own.shape[1], -1))
    weight = torch.sigmoid(gate(torch.cat(parts, dim=2)))
    return weight * own + (1 - weight) * other
