"""MaskNet ranking: probability of click and like for each candidate of a request.

"MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by Instance-Guided Mask",
DLP-KDD'21, arXiv 2102.07619. The math is in `models/layers/instance_guided_mask.py`; here are the
serial and the parallel wiring (section 3.4), a tower per task on the shared output (Tandem's
multi-task form) and the split of user and candidate that serving relies on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.layers.instance_guided_mask import FieldNorm, InstanceGuidedMask, MaskBlock
from models.ranking.fields import NUM_FIELDS, RankingFields
from models.ranking.heads import TaskTowers, multi_task_loss

Variant = Literal["serial", "parallel"]


@dataclass(frozen=True)
class BackboneUser:
    """The user's share of a backbone: normed fields float[B, Du], per mask float[B, t]."""

    normed: Tensor
    hidden: tuple[Tensor, ...]


class MaskNetBackbone(nn.Module):
    """Mask blocks over f fields of width k: float[N, f, k] -> float[N, out_width].

    `emb_norm` and `hidden_norm` switch the layer norms of embeddings and blocks (section 4.5);
    `masked=False` is the paper's ablation without masks.
    """

    def __init__(
        self,
        fields: int,
        width: int,
        blocks: int,
        units: int,
        reduction: float,
        variant: Variant,
        emb_norm: bool = True,
        hidden_norm: bool = True,
        masked: bool = True,
    ) -> None:
        super().__init__()
        embedding = fields * width
        self.variant, self.num_fields = variant, fields
        self.norm = FieldNorm(fields, width) if emb_norm else None
        serial = variant == "serial"
        self.blocks = nn.ModuleList(
            MaskBlock(
                embedding,
                units if serial and i else embedding,
                units,
                reduction,
                hidden_norm,
                masked,
            )
            for i in range(blocks)
        )
        self.out_width = units if serial else blocks * units

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

    def from_parts(self, user: BackboneUser, row_user: Tensor, rest: Tensor) -> Tensor:
        """As `forward`, for rows of users int64[N] and the remaining fields float[N, f - fu, k]."""
        embedding = rest.flatten(1)
        masks = [
            mask.from_parts(hidden[row_user], embedding)
            for mask, hidden in zip(self._masks(), user.hidden, strict=True)
        ]
        start = self.num_fields - rest.shape[1]
        normed = torch.cat([user.normed[row_user], self._normed(rest, start).flatten(1)], dim=1)
        return self._blocks(masks, normed)

    def _normed(self, fields: Tensor, start: int = 0) -> Tensor:
        return fields if self.norm is None else self.norm(fields, start)

    def _masks(self) -> list[InstanceGuidedMask]:
        """Those of the blocks; none in the ablation without masks."""
        blocks = cast(list[MaskBlock], list(self.blocks))  # ModuleList forgets the type
        return [block.mask for block in blocks if block.mask is not None]

    def _blocks(self, found: list[Tensor], normed: Tensor) -> Tensor:
        masks: list[Tensor | None] = [*found] if found else [None] * len(self.blocks)
        if self.variant == "parallel":
            pairs = zip(self.blocks, masks, strict=True)
            return torch.cat([block(mask, normed) for block, mask in pairs], dim=1)
        value = normed
        for block, mask in zip(self.blocks, masks, strict=True):
            value = block(mask, value)
        return value


@dataclass(frozen=True)
class MaskNetConfig:
    """Sizes; `num_items` excludes the unknown row 0."""

    num_items: int
    width: int = 16
    blocks: int = 3
    units: int = 256
    reduction: float = 1.0
    variant: Variant = "parallel"
    tower: tuple[int, ...] = (128, 64)
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class MaskNetUser:
    """Everything about B users that their candidates share."""

    backbone: BackboneUser
    shares: Tensor  # float[B, GENRE_SLOTS]


class MaskNet(nn.Module):
    """See the module docstring; implements `models.ranking.interface.RankingModel`."""

    def __init__(self, config: MaskNetConfig) -> None:
        super().__init__()
        self.cfg = config
        self.tasks = tuple(config.tasks)
        self.fields = RankingFields(config.num_items, config.width)
        self.backbone = MaskNetBackbone(
            NUM_FIELDS, config.width, config.blocks, config.units, config.reduction, config.variant
        )
        self.towers = TaskTowers(len(self.tasks), self.backbone.out_width, config.tower)

    def config(self) -> dict[str, Any]:
        return asdict(self.cfg)

    @property
    def device(self) -> torch.device:
        return self.fields.device

    def load_items(self, items: ItemTable) -> None:
        self.fields.load_items(items)

    def forward(
        self,
        batch: UserBatch,
        row_user: Tensor,
        item_rows: Tensor,
        counters: Tensor,
        lifetime: Tensor | None = None,
    ) -> Tensor:
        """Logits float[N, T], computed row by row as published; arguments as in `score`.

        `lifetime` float[N, 2]: the items' clicks and likes at the time of each training example.
        """
        users, shares = self.fields.user(batch)
        rest = self.fields.candidate(shares[row_user], item_rows, counters, lifetime)
        return self.towers(self.backbone(torch.cat([users[row_user], rest], dim=1)))

    @torch.no_grad()
    def user_part(self, batch: UserBatch) -> MaskNetUser:
        users, shares = self.fields.user(batch)
        return MaskNetUser(self.backbone.user_part(users), shares)

    @torch.no_grad()
    def score(
        self, user: MaskNetUser, row_user: Tensor, item_rows: Tensor, counters: Tensor
    ) -> Tensor:
        """Probabilities float32[N, T]; tensors are on the model's device."""
        rest = self.fields.candidate(user.shares[row_user], item_rows, counters)
        logits = self.towers(self.backbone.from_parts(user.backbone, row_user, rest))
        return torch.sigmoid(logits.float())

    def loss(self, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """See `models.ranking.heads.multi_task_loss`."""
        return multi_task_loss(logits, labels, known)
