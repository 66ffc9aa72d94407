"""The networks of the ranking models over the features of any table, one small module per model.

Each embeds a `TableBatch`, runs the network that the model of the same name serves with, and ends
in a tower per task (logits float[N, T]). Its settings are a frozen dataclass of JSON-ready values:
`NETWORKS` names them. The linear models and FM have no tower: their weights are per task already.

All networks but the linear one read the same fields, histories pooled by their mean; DIN and INFNet
read the items of the histories too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.configs import derived
from models.layers.embedding_tables import (
    EmbeddingOptions,
    EmbeddingTables,
    FeatureSchema,
    TableBatch,
)
from models.layers.experts import MultiGateMixture
from models.layers.factorization import Moments
from models.layers.infnet_block import Attention, ProxySource
from models.layers.layered_crossing import Activation
from models.layers.split_linear import SplitMLP
from models.layers.target_attention import TargetAttention
from models.ranking.dcn_v2 import DCNV2Backbone
from models.ranking.heads import TaskTowers
from models.ranking.infnet_backbone import FieldTokens, INFNetBackbone, INFNetForm
from models.ranking.masknet import EmbNorm, MaskNetBackbone, MaskNetForm, Variant
from models.ranking.mlcc import MLCCBackbone, MLCCForm


class LinearTerm(nn.Module):
    """b_t + sum over fields of the value's weight: embeddings of width T, column t for task t."""

    def __init__(self, schema: FeatureSchema, options: EmbeddingOptions) -> None:
        super().__init__()
        self.tables = EmbeddingTables(schema, len(schema.tasks), replace(options, lookups=1))
        self.bias = nn.Parameter(torch.zeros(len(schema.tasks)))

    def forward(self, batch: TableBatch) -> Tensor:
        return self.bias + self.tables(batch).sum(1)


@dataclass(frozen=True)
class LogisticRegressionSettings:
    """Nothing to set: a weight per value and task."""


class LogisticRegressionNetwork(LinearTerm):
    def __init__(
        self, schema: FeatureSchema, settings: LogisticRegressionSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__(schema, options)


@dataclass(frozen=True)
class FMSettings:
    width: int = 16


class FMNetwork(nn.Module):
    """Linear term and products of pairs, their k coordinates weighed per task."""

    def __init__(
        self, schema: FeatureSchema, settings: FMSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        self.linear = LinearTerm(schema, options)
        self.tables = EmbeddingTables(schema, settings.width, options)
        self.task_weight = nn.Parameter(torch.ones(len(schema.tasks), settings.width))

    def forward(self, batch: TableBatch) -> Tensor:
        products = Moments.of(self.tables(batch)).products()
        return self.linear(batch) + products @ self.task_weight.T


@dataclass(frozen=True)
class DNNSettings:
    width: int = 16
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64, 32)
    dropout: float = 0.0


class DNNNetwork(nn.Module):
    def __init__(
        self, schema: FeatureSchema, settings: DNNSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        self.tables = EmbeddingTables(schema, settings.width, options)
        self.deep = SplitMLP(self.tables.num_fields * settings.width, settings.hidden)
        self.head = _Head(schema, self.deep.out_width, settings.tower, settings.dropout)

    def forward(self, batch: TableBatch) -> Tensor:
        return self.head(self.deep(self.tables(batch).flatten(1)))


@dataclass(frozen=True)
class DeepFMSettings:
    width: int = 16
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0


class DeepFMNetwork(nn.Module):
    def __init__(
        self, schema: FeatureSchema, settings: DeepFMSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        self.linear = LinearTerm(schema, options)
        self.tables = EmbeddingTables(schema, settings.width, options)
        self.task_weight = nn.Parameter(torch.ones(len(schema.tasks), settings.width))
        self.deep = SplitMLP(self.tables.num_fields * settings.width, settings.hidden)
        self.head = _Head(schema, self.deep.out_width, settings.tower, settings.dropout)

    def forward(self, batch: TableBatch) -> Tensor:
        fields = self.tables(batch)
        products = Moments.of(fields).products() @ self.task_weight.T
        return self.linear(batch) + products + self.head(self.deep(fields.flatten(1)))


@dataclass(frozen=True)
class DCNV2Settings:
    width: int = 16
    cross_layers: int = 2
    hidden: tuple[int, ...] = (128, 64)
    tower: tuple[int, ...] = (128, 64)
    dropout: float = 0.0


class DCNV2Network(nn.Module):
    def __init__(
        self, schema: FeatureSchema, settings: DCNV2Settings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        self.tables = EmbeddingTables(schema, settings.width, options)
        self.backbone = DCNV2Backbone(
            self.tables.num_fields * settings.width, settings.cross_layers, settings.hidden
        )
        self.head = _Head(schema, self.backbone.out_width, settings.tower, settings.dropout)

    def forward(self, batch: TableBatch) -> Tensor:
        return self.head(self.backbone(self.tables(batch).flatten(1)))


@dataclass(frozen=True)
class DINSettings:
    width: int = 16
    attention: tuple[int, ...] = (36,)
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0


class DINNetwork(nn.Module):
    """The candidate's value of a field attends to that field's histories, whose kinds are told
    apart by an embedding; one attended field per field with a history."""

    def __init__(
        self, schema: FeatureSchema, settings: DINSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        _needs_history(schema, "din")
        self.tables = EmbeddingTables(schema, settings.width, options)
        names = [f.name for f in schema.categorical]
        self.groups = [
            (names.index(of), tuple(h for h in schema.histories if h.of == of))
            for of in dict.fromkeys(h.of for h in schema.histories)
        ]
        self.types = nn.ModuleList(
            nn.Embedding(len(histories), settings.width) for _, histories in self.groups
        )
        for types in self.types.parameters():
            nn.init.normal_(types, std=options.init_std)
        self.attention = nn.ModuleList(
            TargetAttention(settings.width, settings.attention) for _ in self.groups
        )
        fields = self.tables.num_fields + len(self.groups)
        self.deep = SplitMLP(fields * settings.width, settings.hidden)
        self.head = _Head(schema, self.deep.out_width, settings.tower, settings.dropout)

    def forward(self, batch: TableBatch) -> Tensor:
        fields = self.tables(batch)
        parts = [fields.flatten(1)]
        for (field, histories), types, attend in zip(
            self.groups, self.types, self.attention, strict=True
        ):
            items = self.tables.sequence(batch, histories)
            parts.append(attend(fields[:, field], items.tokens + types(items.types), items.keep))
        return self.head(self.deep(torch.cat(parts, dim=1)))


@dataclass(frozen=True)
class MMoESettings:
    width: int = 16
    experts: int = 4
    expert: tuple[int, ...] = (128, 64)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0


class MMoENetwork(nn.Module):
    def __init__(
        self, schema: FeatureSchema, settings: MMoESettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        self.tables = EmbeddingTables(schema, settings.width, options)
        self.mixture = MultiGateMixture(
            self.tables.num_fields * settings.width,
            settings.experts,
            settings.expert,
            len(schema.tasks),
        )
        self.head = _Head(schema, self.mixture.out_width, settings.tower, settings.dropout)

    def forward(self, batch: TableBatch) -> Tensor:
        return self.head(self.mixture(self.tables(batch).flatten(1)))


@dataclass(frozen=True)
class MaskNetSettings:
    """As `models.ranking.masknet.MaskNetForm`.

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

    def __post_init__(self) -> None:
        # Trainings saved while there was no "whole" say true or false.
        if isinstance(self.emb_norm, bool):
            object.__setattr__(self, "emb_norm", "field" if self.emb_norm else "off")


class MaskNetNetwork(nn.Module):
    def __init__(
        self, schema: FeatureSchema, settings: MaskNetSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        self.tables = EmbeddingTables(schema, settings.width, options)
        self.backbone = MaskNetBackbone(
            derived(MaskNetForm, settings, fields=self.tables.num_fields)
        )
        self.head = _Head(
            schema, self.backbone.out_width, settings.tower, settings.dropout, drop_shared=False
        )

    def forward(self, batch: TableBatch) -> Tensor:
        return self.head(self.backbone(self.tables(batch)))


@dataclass(frozen=True)
class MLCCSettings:
    """As `models.ranking.mlcc.MLCCForm`; an embedding has channels * channel_width numbers."""

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


class MLCCNetwork(nn.Module):
    def __init__(
        self, schema: FeatureSchema, settings: MLCCSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        width = settings.channels * settings.channel_width
        self.tables = EmbeddingTables(schema, width, options)
        self.backbone = MLCCBackbone(
            derived(MLCCForm, settings, fields=self.tables.num_fields, width=settings.channel_width)
        )
        self.head = _Head(schema, self.backbone.out_width, settings.tower, settings.dropout)

    def forward(self, batch: TableBatch) -> Tensor:
        return self.head(self.backbone(self.tables(batch)))


@dataclass(frozen=True)
class INFNetSettings:
    """As `models.ranking.infnet_backbone.INFNetForm`.

    `own_history` gives the items of histories a table of their own (the paper). `pool_histories`
    adds the histories' means to the categorical tokens, which other networks read too.
    """

    width: int = 32
    blocks: int = 3
    categorical_proxies: int = 4
    proxies_per_type: int = 1
    task_proxies: int = 2
    head: tuple[int, ...] = (64,)
    proxy_source: ProxySource = "updated"
    residual: bool = True
    heads: int = 1
    out_proj: bool = False
    pgu_layers: int = 2
    phi_layers: int = 1
    prune_last_block: bool = True
    dropout: float = 0.0
    task_tokens: bool = True
    attention: Attention = "cross"
    gated: bool = True
    own_history: bool = False
    pool_histories: bool = True
    field_tokens: FieldTokens = "raw"


class INFNetNetwork(nn.Module):
    """Categorical tokens are the fields, sequence tokens the items of every history, a type each.

    A table without histories gives the network one empty place per row: all terms of the sequence
    are zero (section 3.3, padding).
    """

    def __init__(
        self, schema: FeatureSchema, settings: INFNetSettings, options: EmbeddingOptions
    ) -> None:
        super().__init__()
        self.tables = EmbeddingTables(
            schema,
            settings.width,
            options,
            pool_histories=settings.pool_histories,
            own_history=settings.own_history,
        )
        self.types = nn.Embedding(max(len(schema.histories), 1), settings.width)
        nn.init.normal_(self.types.weight, std=options.init_std)
        self.backbone = INFNetBackbone(
            derived(
                INFNetForm,
                settings,
                categorical=self.tables.num_fields,
                types=max(len(schema.histories), 1),
                tasks=len(schema.tasks),
            )
        )

    def forward(self, batch: TableBatch) -> Tensor:
        fields = self.tables(batch)
        if self.tables.schema.histories:
            items = self.tables.sequence(batch)
            tokens = items.tokens + self.types(items.types)
            return self.backbone(fields, tokens, items.types, items.keep)
        types = torch.zeros(len(fields), 1, dtype=torch.long, device=fields.device)
        return self.backbone(fields, fields.new_zeros(len(fields), 1, fields.shape[2]), types,
                             types.bool())  # fmt: skip


class _Head(nn.Module):
    """Dropout on what the tasks share, unless that has had it, then a tower per task."""

    def __init__(
        self,
        schema: FeatureSchema,
        width: int,
        hidden: tuple[int, ...],
        dropout: float,
        drop_shared: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout if drop_shared else 0.0)
        self.towers = TaskTowers(len(schema.tasks), width, hidden, dropout)

    def forward(self, shared: Tensor) -> Tensor:
        return self.towers(self.dropout(shared))


def _needs_history(schema: FeatureSchema, model: str) -> None:
    if not schema.histories:
        raise ValueError(f"{model} attends to histories and the table has none: choose a model "
                         "that reads fields alone, dnn for one")  # fmt: skip


NETWORKS: dict[str, tuple[type[Any], Callable[..., nn.Module]]] = {
    "logistic_regression": (LogisticRegressionSettings, LogisticRegressionNetwork),
    "fm": (FMSettings, FMNetwork),
    "dnn": (DNNSettings, DNNNetwork),
    "deepfm": (DeepFMSettings, DeepFMNetwork),
    "dcn_v2": (DCNV2Settings, DCNV2Network),
    "din": (DINSettings, DINNetwork),
    "mmoe": (MMoESettings, MMoENetwork),
    "masknet": (MaskNetSettings, MaskNetNetwork),
    "mlcc": (MLCCSettings, MLCCNetwork),
    "infnet": (INFNetSettings, INFNetNetwork),
}
