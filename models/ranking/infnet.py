"""INFNet ranking: categorical, sequence and task tokens exchange information through proxies.

"INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", Kuaishou,
arXiv 2508.11565v1 (v2 is another network). No public code of v1 is known and the paper leaves
splits, depth and several shapes open: what it does not state is closed in
`specs/ranking_models.md` section 3.3, with a switch each. The network is in
`models/ranking/infnet_backbone.py` (native multi-task: head i reads task token i); here are the
tokens that it reads and what serving computes once per request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.configs import derived
from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.infnet_block import Attention, ProxySource
from models.layers.split_linear import Index
from models.ranking.infnet_backbone import BackboneUser, FieldTokens, INFNetBackbone, INFNetForm
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


@dataclass(frozen=True)
class INFNetConfig:
    """Sizes and switches, as `models.ranking.infnet_backbone.INFNetForm`.

    `own_history` gives the items of histories a table of their own (the paper). `pool_histories`
    keeps the histories' means among the categorical tokens, which other networks read too.
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


class INFNet(Network[BackboneUser]):
    """Categorical tokens are the fields, sequence tokens the items of every history, with types.

    Once per request: the history's tokens and proxies, the user's columns of phi_cat and the
    attention terms of the first block between tasks and history. The keys and values of tokens
    are never formed (`models/layers/cross_attention.py`), so there are none to keep. From the
    second block on everything depends on the candidate.

    Without histories the network has one empty place per user: all terms of the sequence are zero
    (section 3.3, padding).
    """

    def __init__(
        self, schema: FeatureSchema, settings: INFNetConfig, options: EmbeddingOptions | None = None
    ) -> None:
        if not settings.pool_histories:
            schema = replace(schema, inputs=tuple(i for i in schema.inputs if i.kind != "pool"))
        super().__init__(schema, settings.width, options, own_history=settings.own_history)
        types = max(sum(h.types for h in schema.histories), 1)
        self.types = nn.Embedding(types, settings.width)
        nn.init.normal_(self.types.weight, std=self.tables.options.init_std)
        tasks = len(schema.tasks)
        self.backbone = INFNetBackbone(
            derived(INFNetForm, settings, categorical=self.num_fields, types=types, tasks=tasks)
        )

    def user_part(self, users: Features) -> BackboneUser:
        fields = self.user_fields(users)
        if self.tables.schema.histories:
            items = self.tables.sequence(users)
            tokens = items.tokens + self.types(items.types)
            return self.backbone.user_part(fields, tokens, items.types, items.keep)
        types = torch.zeros(len(fields), 1, dtype=torch.long, device=fields.device)
        nothing = fields.new_zeros(len(fields), 1, fields.shape[2])
        return self.backbone.user_part(fields, nothing, types, types.bool())

    def logits(self, user: BackboneUser, row_user: Index, rows: Candidates) -> Tensor:
        return self.backbone.from_parts(user, row_user, self.row_fields(rows))
