"""MaskNet ranking: masks guided by the instance, for each candidate of a request.

"MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by Instance-Guided Mask",
DLP-KDD'21, arXiv 2102.07619. The math is in `models/layers/instance_guided_mask.py`; here are the
serial and the parallel wiring (section 3.4), a tower per task on the shared output (Tandem's
multi-task form) and the split of user and candidate that serving relies on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from models.configs import derived
from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.instance_guided_mask import (
    FieldNorm,
    InstanceGuidedMask,
    MaskBlock,
    MaskBlockForm,
)
from models.layers.split_linear import Index, of_users
from models.ranking.heads import Head
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema

Variant = Literal["serial", "parallel"]
EmbNorm = Literal["field", "whole", "off"]


@dataclass(frozen=True)
class MaskNetForm:
    """Sizes and switches of section 4.5; defaults of its form for several tasks.

    `emb_norm` is the layer norm of the blocks' input: of each field by itself (the paper), of all
    fields together, or none. Masks read the embeddings as they are. For the others see
    `MaskBlockForm`; `masked` and `feed_forward` are the paper's ablations.
    """

    fields: int  # f
    width: int = 10  # k
    blocks: int = 3
    units: int = 400  # q
    reduction: float = 2.0  # r
    variant: Variant = "parallel"
    emb_norm: EmbNorm = "field"
    hidden_norm: bool = True
    relu_after_ln: bool = True
    hidden_bias: bool = False
    dropout: float = 0.0
    masked: bool = True
    feed_forward: bool = True


@dataclass(frozen=True)
class BackboneUser:
    """The user's share of a backbone."""

    fields: Tensor  # float[B, Du], with `emb_norm="field"` normed
    hidden: tuple[Tensor, ...]  # of each mask, float[B, t]


class MaskNetBackbone(nn.Module):
    """Mask blocks over f fields of width k: float[N, f, k] -> float[N, out_width]."""

    def __init__(self, form: MaskNetForm) -> None:
        super().__init__()
        embedding = form.fields * form.width
        self.variant, self.num_fields = form.variant, form.fields
        self.norm = FieldNorm(form.fields, form.width) if form.emb_norm == "field" else None
        self.whole_norm = nn.LayerNorm(embedding) if form.emb_norm == "whole" else None
        block = derived(MaskBlockForm, form)
        blocks: list[MaskBlock] = []
        for _ in range(form.blocks):
            width = blocks[-1].out_width if blocks and form.variant == "serial" else embedding
            blocks.append(MaskBlock(embedding, width, block))
        self.blocks = nn.ModuleList(blocks)
        each = blocks[-1].out_width
        self.out_width = each if form.variant == "serial" else form.blocks * each

    def forward(self, fields: Tensor) -> Tensor:
        """The network as published, user and candidate fields together."""
        embedding = fields.flatten(1)
        masks = [mask(embedding) for mask in self._masks()]
        return self._blocks(masks, self._normed(fields).flatten(1))

    def user_part(self, fields: Tensor) -> BackboneUser:
        """What the first fields float[B, fu, k], those of the user, contribute to every row."""
        embedding = fields.flatten(1)
        hidden = tuple(mask.user_hidden(embedding) for mask in self._masks())
        return BackboneUser(self._normed(fields).flatten(1), hidden)

    def from_parts(self, user: BackboneUser, row_user: Index, rest: Tensor) -> Tensor:
        """As `forward`, for rows of users int64[N] and the remaining fields float[N, f - fu, k]."""
        embedding = rest.flatten(1)
        masks = [
            mask.from_parts(of_users(hidden, row_user), embedding)
            for mask, hidden in zip(self._masks(), user.hidden, strict=True)
        ]
        start = self.num_fields - rest.shape[1]
        fields = torch.cat(
            [of_users(user.fields, row_user), self._normed(rest, start).flatten(1)], dim=1
        )
        return self._blocks(masks, fields)

    def _normed(self, fields: Tensor, start: int = 0) -> Tensor:
        """The fields number start.. each normed by itself, if they are."""
        return fields if self.norm is None else self.norm(fields, start)

    def _masks(self) -> list[InstanceGuidedMask]:
        """Those of the blocks; none in the ablation without masks."""
        blocks = cast(list[MaskBlock], list(self.blocks))  # ModuleList forgets the type
        return [block.mask for block in blocks if block.mask is not None]

    def _blocks(self, found: list[Tensor], fields: Tensor) -> Tensor:
        value = fields if self.whole_norm is None else self.whole_norm(fields)
        masks: list[Tensor | None] = [*found] if found else [None] * len(self.blocks)
        if self.variant == "parallel":
            pairs = zip(self.blocks, masks, strict=True)
            return torch.cat([block(mask, value) for block, mask in pairs], dim=1)
        for block, mask in zip(self.blocks, masks, strict=True):
            value = block(mask, value)
        return value


@dataclass(frozen=True)
class MaskNetConfig:
    """Sizes and switches (see `MaskNetForm`).

    `dropout` follows the ReLU of every block and of every hidden layer of the towers.
    """

    width: int = 16
    blocks: int = 3
    units: int = 128
    reduction: float = 1.0
    variant: Variant = "parallel"
    emb_norm: EmbNorm = "field"
    hidden_norm: bool = True
    relu_after_ln: bool = True
    hidden_bias: bool = False
    masked: bool = True
    feed_forward: bool = True
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0


class MaskNet(Network[BackboneUser]):
    """See the module docstring."""

    def __init__(
        self,
        schema: FeatureSchema,
        settings: MaskNetConfig,
        options: EmbeddingOptions | None = None,
    ) -> None:
        super().__init__(schema, settings.width, options)
        self.backbone = MaskNetBackbone(derived(MaskNetForm, settings, fields=self.num_fields))
        self.head = Head(
            len(schema.tasks), self.backbone.out_width, settings.tower, settings.dropout,
            drop_shared=False,
        )  # fmt: skip

    def user_part(self, users: Features) -> BackboneUser:
        return self.backbone.user_part(self.user_fields(users))

    def logits(self, user: BackboneUser, row_user: Index, rows: Candidates) -> Tensor:
        return self.head(self.backbone.from_parts(user, row_user, self.row_fields(rows)))
