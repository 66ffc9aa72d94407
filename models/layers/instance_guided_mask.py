"""Instance-guided masks and the blocks built from them (MaskNet).

"MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by Instance-Guided Mask",
DLP-KDD'21, arXiv 2102.07619. A mask is computed from the row's whole embedding and multiplies a
layer element by element; it is no gate: there is no sigmoid, it may be negative or exceed 1.

The first map of every mask is linear in the embedding, so its user columns are computed once per
request (`user_hidden`) and only the remaining columns per candidate: exact up to summation order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class FieldNorm(nn.Module):
    """LN_EMB: layer norm of each field's embedding by itself, own gain and bias (eq. 5)."""

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(fields, width))
        self.bias = nn.Parameter(torch.zeros(fields, width))

    def forward(self, fields: Tensor, start: int = 0) -> Tensor:
        """float[N, m, k] -> the same; the m fields are numbers start..start+m-1."""
        part = slice(start, start + fields.shape[1])
        normal = functional.layer_norm(fields, fields.shape[-1:])
        return normal * self.gain[part] + self.bias[part]


class InstanceGuidedMask(nn.Module):
    """V_mask = W2 ReLU(W1 V_emb + b1) + b2 (eq. 4), W1 of t = int(r z) rows."""

    def __init__(self, embedding: int, width: int, reduction: float) -> None:
        super().__init__()
        self.aggregate = nn.Linear(embedding, int(reduction * width))
        self.project = nn.Linear(self.aggregate.out_features, width)

    def forward(self, embedding: Tensor) -> Tensor:
        """float[N, D] -> float[N, z]."""
        return self.project(torch.relu(self.aggregate(embedding)))

    def user_hidden(self, user: Tensor) -> Tensor:
        """W1's user columns applied: float[B, Du] -> float[B, t]."""
        return functional.linear(
            user, self.aggregate.weight[:, : user.shape[1]], self.aggregate.bias
        )

    def from_parts(self, user_hidden: Tensor, rest: Tensor) -> Tensor:
        """The mask of rows float[N, t] (user part) and float[N, D - Du] (the other columns)."""
        start = self.aggregate.in_features - rest.shape[1]
        rest_hidden = functional.linear(rest, self.aggregate.weight[:, start:])
        return self.project(torch.relu(user_hidden + rest_hidden))


@dataclass(frozen=True)
class MaskBlockForm:
    """A block's size and its switches (`specs/ranking_models.md` section 4.5).

    Two are the paper's ablations: without `masked` the block has no mask and maps its input,
    without `feed_forward` it has no W, norm and ReLU and puts out its masked input.
    """

    units: int  # q
    reduction: float = 2.0  # r
    hidden_norm: bool = True
    relu_after_ln: bool = True
    hidden_bias: bool = False
    dropout: float = 0.0  # of what the block puts out
    masked: bool = True
    feed_forward: bool = True

    def __post_init__(self) -> None:
        if not (self.masked or self.feed_forward):
            raise ValueError("a block without mask and feed-forward layer would do nothing")


class MaskBlock(nn.Module):
    """Dropout(ReLU(LN(W (V_mask * input)))), the norm before the ReLU (eq. 7 and 8)."""

    def __init__(self, embedding: int, width: int, form: MaskBlockForm) -> None:
        """Of the row's embedding float[N, D] and an input float[N, z]."""
        super().__init__()
        self.mask = InstanceGuidedMask(embedding, width, form.reduction) if form.masked else None
        fed = form.feed_forward
        self.hidden = nn.Linear(width, form.units, form.hidden_bias) if fed else None
        self.norm = nn.LayerNorm(form.units) if fed and form.hidden_norm else nn.Identity()
        self.activation = nn.ReLU() if form.relu_after_ln else nn.Identity()
        self.dropout = nn.Dropout(form.dropout)
        self.out_width = form.units if form.feed_forward else width

    def forward(self, mask: Tensor | None, value: Tensor) -> Tensor:
        """Mask and input float[N, z] -> float[N, out_width]."""
        masked = value if mask is None else mask * value
        if self.hidden is not None:
            masked = self.activation(self.norm(self.hidden(masked)))
        out: Tensor = self.dropout(masked)
        return out
