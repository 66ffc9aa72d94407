"""Global compressor, progressive layered crossing, local compressor and field gate (MLCC).

"Compress, Cross and Scale: Multi-Level Compression Cross Networks for Efficient Scaling in
Recommender Systems", Bilibili, arXiv 2602.12041. The equations follow the authors' released code,
not the paper's text: `specs/ranking_models.md` section 5.3, whose step numbers are used here.

Fields X float[N, F, E_t] are cut into S channels of E columns; shapes below are per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["none", "relu", "tanh", "sigmoid"]
_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def channels_of(fields: Tensor, channels: int) -> Tensor:
    """Step 1: float[N, F, S E] -> float[N, S, F, E]."""
    return fields.unflatten(2, (channels, -1)).transpose(1, 2)


class GlobalCompressor(nn.Module):
    """Step 2: a linear map of all fields gives the weights of H small networks, per channel.

    No bias and no activation, so the users' fields are mapped once per request.
    """

    def __init__(self, channels: int, fields: int, width: int, heads: int, size: int) -> None:
        """`width` is E, `size` the number M_theta of generated weights of one head."""
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(channels, fields, width, heads * size))
        for channel in self.weight.data:
            nn.init.xavier_normal_(channel.flatten(0, 1))

    def forward(self, channels: Tensor, start: int = 0) -> Tensor:
        """The share of fields number start.. float[N, S, m, E]: float[N, S, H, M_theta]."""
        weight = self.weight[:, start : start + channels.shape[2]]
        mapped = torch.einsum("nsfe,sfeg->nsg", channels, weight)
        return mapped.unflatten(2, (self.heads, -1))


class LayeredCrossing(nn.Module):
    """Step 3: Z_p = Z_{p-1} Theta_p with Z_0 = X, the same weights for every field, no bias.

    Theta is linear in X: without an activation Z_p is a form of degree p + 1 in X. `concat` names
    the layers p in 1..P-1 that are put out beside the last. The activation, which the released
    code does not have, stands between layers and not after the last.
    """

    def __init__(
        self,
        width: int,
        dims: Sequence[int],
        concat: Sequence[int] = (),
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        wrong = [p for p in concat if not 0 < p < len(dims)]
        if wrong:
            raise ValueError(f"concat {wrong}: layers to put out are numbered 1..{len(dims) - 1}")
        self.shapes = list(zip([width, *dims], dims, strict=False))
        self.size = sum(a * b for a, b in self.shapes)
        self.put_out = sorted({*concat, len(dims)})
        self.out_width = sum(dims[p - 1] for p in self.put_out)
        self.activation = _ACTIVATIONS.get(activation)

    def forward(self, channels: Tensor, theta: Tensor) -> Tensor:
        """Fields float[N, S, F, E], weights float[N, S, H, M_theta] -> float[N, S, F, H w]."""
        value = channels[:, :, None]
        found, start = [], 0
        for p, (rows, columns) in enumerate(self.shapes, 1):
            end = start + rows * columns
            value = value @ theta[..., start:end].unflatten(-1, (rows, columns))
            if self.activation is not None and p < len(self.shapes):
                value = self.activation(value)
            if p in self.put_out:
                found.append(value)
            start = end
        return torch.cat(found, dim=-1).transpose(2, 3).flatten(3)


class LocalCompressor(nn.Module):
    """Step 5: Y_f = R_f W_f, a map of its own for every field, no bias.

    R_f holds the crossed columns of all channels, then the raw ones. With `groups` > 1 every group
    of channels has maps of its own and the results are concatenated.
    """

    def __init__(self, fields: int, crossed: int, raw: int, out: int, groups: int = 1) -> None:
        """`crossed` and `raw` columns of R_f (over all groups) to groups * `out` columns of Y_f."""
        super().__init__()
        self.groups = groups
        self.crossed_per_group = crossed // groups
        self.weight = nn.Parameter(torch.empty(groups, fields, (crossed + raw) // groups, out))
        for group in self.weight.data:
            nn.init.xavier_normal_(group)

    def crossed(self, crossed: Tensor) -> Tensor:
        """The share of crossed columns: float[N, S, F, H w] -> float[N, F, G E2]."""
        n, s, f, _ = crossed.shape
        grouped = crossed.view(n, self.groups, s // self.groups, f, -1)
        columns = grouped.transpose(2, 3).flatten(3)
        return self._map(columns, self.weight[:, :, : self.crossed_per_group])

    def raw(self, fields: Tensor, start: int = 0) -> Tensor:
        """The share of raw columns of fields number start..: float[N, m, E_t] -> [N, m, G E2]."""
        part = slice(start, start + fields.shape[1])
        columns = fields.unflatten(2, (self.groups, -1)).transpose(1, 2)
        return self._map(columns, self.weight[:, part, self.crossed_per_group :])

    @staticmethod
    def _map(columns: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("ngfk,gfke->nfge", columns, weight).flatten(2)


class FieldGate(nn.Module):
    """Step 6: a = sigmoid(W_b LN(ReLU(W_a mean_e(Y) + b_a)) + b_b), one number per field."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(fields, fields // 2)
        self.excite = nn.Linear(fields // 2, fields)

    def forward(self, fields: Tensor) -> Tensor:
        """float[N, F, e] -> the same, every field scaled by its gate."""
        hidden = torch.relu(self.squeeze(fields.mean(2)))
        normal = functional.layer_norm(hidden, hidden.shape[1:])
        return fields * torch.sigmoid(self.excite(normal))[..., None]
