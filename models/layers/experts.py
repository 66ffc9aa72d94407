"""Multi-gate mixture of experts (MMoE, KDD'18, eq. 6 and 7)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.split_linear import Index, SplitLinear, of_users


class MixtureUser(NamedTuple):
    """The user's share of the first maps: float[B, E h] and float[B, T E]."""

    experts: Tensor
    gates: Tensor


class MultiGateMixture(nn.Module):
    """f_t(x) = sum_e softmax(W_t x)_e expert_e(x), experts being Linear-ReLU stacks of one shape.

    The experts' first maps and the gates are linear in x and split into user and candidate columns.
    """

    def __init__(self, width: int, experts: int, hidden: tuple[int, ...], tasks: int) -> None:
        super().__init__()
        self.experts, self.tasks = experts, tasks
        self.first = SplitLinear(width, experts * hidden[0])
        self.gates = SplitLinear(width, tasks * experts, bias=False)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for rows, columns in pairwise(hidden):
            bound = rows**-0.5  # as nn.Linear
            self.weights.append(nn.Parameter(torch.empty(experts, rows, columns)))
            self.biases.append(nn.Parameter(torch.empty(experts, 1, columns)))
            nn.init.uniform_(self.weights[-1], -bound, bound)
            nn.init.uniform_(self.biases[-1], -bound, bound)
        self.out_width = hidden[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """float[N, D] -> float[N, T, h], one mixture per task."""
        return self._mix(self.first(inputs), self.gates(inputs))

    def user_part(self, user: Tensor) -> MixtureUser:
        return MixtureUser(self.first.user_part(user), self.gates.user_part(user))

    def from_parts(self, user: MixtureUser, row_user: Index, rest: Tensor) -> Tensor:
        """As `forward`, for rows of users int64[N] and the remaining columns float[N, D - Du]."""
        return self._mix(
            self.first.from_parts(of_users(user.experts, row_user), rest),
            self.gates.from_parts(of_users(user.gates, row_user), rest),
        )

    def _mix(self, first: Tensor, gates: Tensor) -> Tensor:
        value = torch.relu(first).unflatten(1, (self.experts, -1)).transpose(0, 1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            value = torch.relu(torch.baddbmm(bias, value, weight))
        share = torch.softmax(gates.unflatten(1, (self.tasks, self.experts)), dim=2)
        return torch.einsum("nte,enh->nth", share, value)
