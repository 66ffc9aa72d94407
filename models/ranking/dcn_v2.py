"""DCN-V2 ranking: cross layers beside a perceptron.

"DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank
Systems", WWW'21, arXiv 2008.13535, matrix form, parallel structure (section 3.3), sized as in
`specs/ranking_models.md` section 2.1. A tower per task reads both parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, cat, nn

from models.inputs import UserBatch
from models.layers.cross_layer import CrossNetwork
from models.layers.split_linear import SplitMLP
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import NUM_FIELDS, RankingFields
from models.ranking.heads import TaskTowers


class BackboneUser(NamedTuple):
    """The users' embeddings float[B, Du] and their share of both parts' first maps."""

    inputs: Tensor
    cross: Tensor
    deep: Tensor


class DCNV2Backbone(nn.Module):
    """Cross and deep part over D columns: float[N, D] -> float[N, D + hidden[-1]]."""

    def __init__(self, width: int, cross_layers: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.cross = CrossNetwork(width, cross_layers)
        self.deep = SplitMLP(width, hidden)
        self.out_width = width + self.deep.out_width

    def forward(self, inputs: Tensor) -> Tensor:
        """The network as published, user and candidate columns together."""
        return cat([self.cross(inputs), self.deep(inputs)], dim=1)

    def user_part(self, inputs: Tensor) -> BackboneUser:
        """What the first columns float[B, Du], those of the user, contribute to every row."""
        return BackboneUser(inputs, self.cross.user_part(inputs), self.deep.user_part(inputs))

    def from_parts(self, user: BackboneUser, row_user: Tensor, rest: Tensor) -> Tensor:
        """As `forward`, for rows of users int64[N] and the remaining columns float[N, D - Du]."""
        inputs = cat([user.inputs[row_user], rest], dim=1)
        crossed = self.cross.from_parts(user.cross[row_user], inputs, rest)
        return cat([crossed, self.deep.from_parts(user.deep[row_user], rest)], dim=1)


@dataclass(frozen=True)
class DCNV2Config:
    """Sizes; `num_items` excludes the unknown row 0."""

    num_items: int
    width: int = 16
    cross_layers: int = 2
    hidden: tuple[int, ...] = (128, 64)
    tower: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class DCNV2User:
    """Everything about B users that their candidates share."""

    backbone: BackboneUser
    shares: Tensor  # float[B, GENRE_SLOTS]


class DCNV2(FieldModel[DCNV2User]):
    """See the module docstring; the first maps are split exactly."""

    def __init__(self, config: DCNV2Config) -> None:
        super().__init__(config, RankingFields(config.num_items, config.width))
        self.backbone = DCNV2Backbone(NUM_FIELDS * config.width, config.cross_layers, config.hidden)
        self.towers = TaskTowers(
            len(self.tasks), self.backbone.out_width, config.tower, config.dropout
        )

    def user_side(self, batch: UserBatch) -> DCNV2User:
        fields, shares = self.fields.user(batch)
        return DCNV2User(self.backbone.user_part(fields.flatten(1)), shares)

    def row_logits(self, user: DCNV2User, candidates: Candidates) -> Tensor:
        rest = self.candidate_fields(user.shares, candidates).flatten(1)
        return self.towers(self.backbone.from_parts(user.backbone, candidates.user, rest))
