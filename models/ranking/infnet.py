"""INFNet ranking: categorical, sequence and task tokens exchange information through proxies.

"INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", Kuaishou,
arXiv 2508.11565v1 (v2 is another network). No public code of v1 is known and the paper leaves
splits, depth and several shapes open: what it does not state is closed in
`specs/ranking_models.md` section 3.3, with a switch each. The network is in
`models/ranking/infnet_backbone.py` (native multi-task: head i reads task token i); here are the
tokens that it reads and what serving computes once per request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.configs import derived
from models.inputs import UserBatch
from models.layers.infnet_block import ProxySource
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import ITEM_FIELDS, NUM_FIELDS, RankingFields
from models.ranking.infnet_backbone import BackboneUser, FieldTokens, INFNetBackbone, INFNetForm

CLICK_TYPE, LIKE_TYPE, TARGET_TYPE = 0, 1, 2
ITEM_TOKEN = ITEM_FIELDS.index("id")  # among the candidate's fields


@dataclass(frozen=True)
class INFNetConfig:
    """Sizes and switches; `num_items` excludes the unknown row 0.

    `sequence_table`: history items have an item table of their own (the paper), or share the
    candidate's. `sequence_fuse`: id, year and genres of a history item are summed, or concatenated
    and mapped; the embedding of the behaviour type is added to either. `target_in_c=False` moves
    the candidate's id from the categorical tokens to the sequence, as an item of a third type.
    `field_tokens` as in `INFNetForm`.
    """

    num_items: int
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
    target_in_c: bool = True
    sequence_fuse: Literal["sum", "concat"] = "sum"
    sequence_table: Literal["own", "shared"] = "own"
    field_tokens: FieldTokens = "raw"
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class INFNetUser:
    """Everything about B users that their candidates share.

    `backbone` is None with `target_in_c=False`: a candidate then is part of its sequence, and
    nothing but the tokens themselves is known before it.
    """

    shares: Tensor  # float[B, GENRE_SLOTS]
    fields: Tensor  # float[B, 6, d]
    sequence: Tensor  # float[B, L, d]
    types: Tensor  # int64[B, L]
    keep: Tensor  # bool[B, L]
    backbone: BackboneUser | None


class INFNet(FieldModel[INFNetUser]):
    """See the module docstring; implements `models.ranking.interface.RankingModel`.

    Once per request: the history's tokens and proxies, the user's columns of phi_cat and the
    attention terms of the first block between tasks and history. The keys and values of tokens
    are never formed (`models/layers/cross_attention.py`), so there are none to keep. From the
    second block on everything depends on the candidate.
    """

    def __init__(self, config: INFNetConfig) -> None:
        super().__init__(config, RankingFields(config.num_items, config.width))
        in_c = config.target_in_c
        self.backbone = INFNetBackbone(
            derived(
                INFNetForm,
                config,
                categorical=NUM_FIELDS if in_c else NUM_FIELDS - 1,
                types=2 if in_c else 3,
                tasks=len(self.tasks),
            )
        )
        width = config.width
        own = config.sequence_table == "own"
        self.sequence_table = (
            nn.Embedding(config.num_items + 1, width, padding_idx=0) if own else None
        )
        self.type_table = nn.Embedding(2 if in_c else 3, width)
        concat = config.sequence_fuse == "concat"
        self.fuse = nn.Linear(3 * width, width) if concat else None
        with torch.no_grad():
            self.type_table.weight.normal_(std=0.05)
            if self.sequence_table is not None:
                self.sequence_table.weight.normal_(std=0.05)
                self.sequence_table.weight[0].zero_()

    def user_side(self, batch: UserBatch) -> INFNetUser:
        fields, shares = self.fields.user(batch)
        history = torch.as_tensor(batch.history, device=self.device)
        liked = torch.as_tensor(batch.history_liked, device=self.device)
        types = torch.where(liked, LIKE_TYPE, CLICK_TYPE)
        tokens, keep = self._sequence(history, types), history > 0
        known = None
        if self.cfg.target_in_c:
            known = self.backbone.user_part(fields, tokens, types, keep)
        return INFNetUser(shares, fields, tokens, types, keep, known)

    def row_logits(self, user: INFNetUser, candidates: Candidates) -> Tensor:
        rest = self.candidate_fields(user.shares, candidates)
        row_user = candidates.user
        if user.backbone is not None:
            return self.backbone.from_parts(user.backbone, row_user, rest)
        others = [rest[:, :ITEM_TOKEN], rest[:, ITEM_TOKEN + 1 :]]
        target = torch.full_like(candidates.rows, TARGET_TYPE)[:, None]
        token = self._sequence(candidates.rows[:, None], target)
        return self.backbone(
            torch.cat([user.fields[row_user], *others], dim=1),
            torch.cat([user.sequence[row_user], token], dim=1),
            torch.cat([user.types[row_user], target], dim=1),
            torch.cat([user.keep[row_user], torch.ones_like(target, dtype=torch.bool)], dim=1),
        )

    def _sequence(self, rows: Tensor, types: Tensor) -> Tensor:
        """Tokens float[B, L, d] of item rows int64[B, L] and their behaviour types."""
        table = self.fields.item_table if self.sequence_table is None else self.sequence_table
        genres = self.fields.genres[rows]
        parts = [
            table(rows),
            self.fields.tables["year"](self.fields.years[rows]),
            genres / genres.sum(-1, keepdim=True).clamp_min(1.0) @ self.fields.genre_table,
        ]
        fused = sum(parts[1:], parts[0]) if self.fuse is None else self.fuse(torch.cat(parts, -1))
        return fused + self.type_table(types)
