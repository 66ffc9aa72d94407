"""DCN-V2 ranking: cross layers beside a perceptron.

"DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank
Systems", WWW'21, arXiv 2008.13535, matrix form, parallel structure (section 3.3), sized as in
`specs/ranking_models.md` section 2.1. A tower per task reads both parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, cat, nn

from models.layers.cross_layer import CrossNetwork
from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.split_linear import Index, SplitMLP, of_users
from models.ranking.heads import Head
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


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

    def from_parts(self, user: BackboneUser, row_user: Index, rest: Tensor) -> Tensor:
        """As `forward`, for rows of users int64[N] and the remaining columns float[N, D - Du]."""
        inputs = cat([of_users(user.inputs, row_user), rest], dim=1)
        crossed = self.cross.from_parts(of_users(user.cross, row_user), inputs, rest)
        return cat([crossed, self.deep.from_parts(of_users(user.deep, row_user), rest)], dim=1)


@dataclass(frozen=True)
class DCNV2Config:
    width: int = 16
    cross_layers: int = 2
    hidden: tuple[int, ...] = (128, 64)
    tower: tuple[int, ...] = (128, 64)
    dropout: float = 0.0


class DCNV2(Network[BackboneUser]):
    """See the module docstring; the first maps are split exactly."""

    def __init__(
        self, schema: FeatureSchema, settings: DCNV2Config, options: EmbeddingOptions | None = None
    ) -> None:
        super().__init__(schema, settings.width, options)
        self.backbone = DCNV2Backbone(self.columns, settings.cross_layers, settings.hidden)
        self.head = Head(
            len(schema.tasks), self.backbone.out_width, settings.tower, settings.dropout
        )

    def user_part(self, users: Features) -> BackboneUser:
        return self.backbone.user_part(self.user_fields(users).flatten(1))

    def logits(self, user: BackboneUser, row_user: Index, rows: Candidates) -> Tensor:
        rest = self.row_fields(rows).flatten(1)
        return self.head(self.backbone.from_parts(user, row_user, rest))
