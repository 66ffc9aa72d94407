"""Cross layers of DCN-V2, matrix form (arXiv 2008.13535, eq. 1)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from models.layers.split_linear import SplitLinear


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l; L layers reach degree L + 1 in x_0.

    The first layer's map reads x_0 and is split into user and candidate columns.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(SplitLinear(width, width) for _ in range(layers))

    def forward(self, inputs: Tensor) -> Tensor:
        """float[N, D] -> float[N, D]."""
        return self._layers(inputs, self._first(inputs))

    def user_part(self, user: Tensor) -> Tensor:
        """The first map's user columns applied: float[B, Du] -> float[B, D]."""
        return self._first.user_part(user)

    def from_parts(self, hidden: Tensor, inputs: Tensor, rest: Tensor) -> Tensor:
        """As `forward` of `inputs`, whose last columns are `rest`; `hidden` is the user part."""
        return self._layers(inputs, self._first.from_parts(hidden, rest))

    @property
    def _first(self) -> SplitLinear:
        return cast(SplitLinear, self.maps[0])  # ModuleList forgets the type

    def _layers(self, inputs: Tensor, mapped: Tensor) -> Tensor:
        value = inputs * mapped + inputs
        for layer in list(self.maps)[1:]:
            value = inputs * layer(value) + value
        return value
