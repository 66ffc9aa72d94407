"""MLCC and MC-MLCC ranking: small networks generated per row cross the fields.

"Compress, Cross and Scale: Multi-Level Compression Cross Networks for Efficient Scaling in
Recommender Systems", Bilibili, arXiv 2602.12041. One channel is MLCC, several are MC-MLCC. The
equations follow the authors' released code, not the paper's text (`specs/ranking_models.md`
section 5.3). The math is in `models/layers/layered_crossing.py`; here are the wiring, a tower per
task on the shared output (Tandem's multi-task form) and the split of user and candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, cat, nn

from models.configs import derived
from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.layered_crossing import (
    Activation,
    FieldGate,
    GlobalCompressor,
    LayeredCrossing,
    LocalCompressor,
    channels_of,
)
from models.layers.split_linear import Index, of_users
from models.ranking.heads import Head
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


@dataclass(frozen=True)
class MLCCForm:
    """Sizes and switches of the network; defaults of section 5.5.

    `concat` names dynamic layers 1..P-1 that are put out beside the last; `raw_concat` adds the
    embeddings themselves. `per_channel_lc` gives every channel a local compressor of its own, whose
    outputs are concatenated (their sum would be the shared compressor).
    """

    fields: int
    width: int = 16  # E, of one channel; an embedding has channels * width numbers
    channels: int = 4  # S
    heads: int = 4  # H
    dims: Sequence[int] = (4, 1)  # d_1..d_P
    concat: Sequence[int] = (1,)
    raw_concat: bool = True
    local_width: int = 8  # E2
    dyn_activation: Activation = "none"
    per_channel_lc: bool = False
    se: bool = True


@dataclass(frozen=True)
class BackboneUser:
    """What the users' fields contribute to every row."""

    fields: Tensor  # float[B, fu, E_t]
    theta: Tensor  # float[B, S, H, M_theta]
    raw: Tensor | None  # float[B, fu, out]: raw columns of step 5


class MLCCBackbone(nn.Module):
    """Steps 1 to 6 over F fields: float[N, F, E_t] -> float[N, out_width], fields flattened."""

    def __init__(self, form: MLCCForm) -> None:
        super().__init__()
        self.channels, self.num_fields = form.channels, form.fields
        self.crossing = LayeredCrossing(form.width, form.dims, form.concat, form.dyn_activation)
        self.compress = GlobalCompressor(
            form.channels, form.fields, form.width, form.heads, self.crossing.size
        )
        groups = form.channels if form.per_channel_lc else 1
        self.raw_concat = form.raw_concat
        self.local = LocalCompressor(
            form.fields,
            form.channels * form.heads * self.crossing.out_width,
            form.channels * form.width if form.raw_concat else 0,
            form.local_width,
            groups,
        )
        self.gate = FieldGate(form.fields) if form.se else None
        self.out_width = form.fields * groups * form.local_width

    def forward(self, fields: Tensor) -> Tensor:
        """The network as published, user and candidate fields together."""
        theta = self.compress(channels_of(fields, self.channels))
        return self._cross(fields, theta, self.local.raw(fields) if self.raw_concat else None)

    def user_part(self, fields: Tensor) -> BackboneUser:
        """What the first fields float[B, fu, E_t], those of the user, contribute to every row."""
        theta = self.compress(channels_of(fields, self.channels))
        return BackboneUser(fields, theta, self.local.raw(fields) if self.raw_concat else None)

    def from_parts(self, user: BackboneUser, row_user: Index, rest: Tensor) -> Tensor:
        """As `forward`, for rows of users int64[N] and the remaining fields float[N, F-fu, E_t]."""
        start = self.num_fields - rest.shape[1]
        theta = of_users(user.theta, row_user) + self.compress(
            channels_of(rest, self.channels), start
        )
        raw = None
        if user.raw is not None:
            raw = cat([of_users(user.raw, row_user), self.local.raw(rest, start)], dim=1)
        return self._cross(cat([of_users(user.fields, row_user), rest], dim=1), theta, raw)

    def _cross(self, fields: Tensor, theta: Tensor, raw: Tensor | None) -> Tensor:
        crossed = self.crossing(channels_of(fields, self.channels), theta)
        local = self.local.crossed(crossed)
        if raw is not None:
            local = local + raw
        return (local if self.gate is None else self.gate(local)).flatten(1)


@dataclass(frozen=True)
class MLCCConfig:
    """Sizes and switches (see `MLCCForm`); an embedding has channels * channel_width numbers."""

    channel_width: int = 16
    channels: int = 4
    heads: int = 4
    dims: tuple[int, ...] = (4, 1)
    concat: tuple[int, ...] = (1,)
    raw_concat: bool = True
    local_width: int = 8
    dyn_activation: Activation = "none"
    per_channel_lc: bool = False
    se: bool = True
    tower: tuple[int, ...] = (256, 128, 64, 32)
    dropout: float = 0.2


class MLCC(Network[BackboneUser]):
    """See the module docstring."""

    def __init__(
        self, schema: FeatureSchema, settings: MLCCConfig, options: EmbeddingOptions | None = None
    ) -> None:
        super().__init__(schema, settings.channels * settings.channel_width, options)
        self.backbone = MLCCBackbone(
            derived(MLCCForm, settings, fields=self.num_fields, width=settings.channel_width)
        )
        self.head = Head(
            len(schema.tasks), self.backbone.out_width, settings.tower, settings.dropout
        )

    def user_part(self, users: Features) -> BackboneUser:
        return self.backbone.user_part(self.user_fields(users))

    def logits(self, user: BackboneUser, row_user: Index, rows: Candidates) -> Tensor:
        return self.head(self.backbone.from_parts(user, row_user, self.row_fields(rows)))
