"""DIN ranking: the candidate attends to the user's history.

"Deep Interest Network for Click-Through Rate Prediction", KDD'18, arXiv 1706.06978. The attended
history joins the fields as one more; hidden layers are shared by the tasks and end in a tower per
task. Two departures: ReLU for Dice, which would mix rows, and an embedding of the behaviour (click
or like) that is added to a history item's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.inputs import UserBatch
from models.layers.split_linear import SplitMLP
from models.layers.target_attention import TargetAttention
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import ITEM_FIELDS, NUM_FIELDS, RankingFields
from models.ranking.heads import TaskTowers

ITEM_ID = ITEM_FIELDS.index("id")  # among the candidate's fields


@dataclass(frozen=True)
class DINConfig:
    """Sizes; `num_items` excludes the unknown row 0; `attention` is the activation unit's."""

    num_items: int
    width: int = 16
    attention: tuple[int, ...] = (36,)
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class DINUser:
    """Everything about B users that their candidates share."""

    keys: Tensor  # float[B, L, k]
    keep: Tensor  # bool[B, L]
    key_part: Tensor  # float[B, L, a]: the activation unit's share of the keys
    hidden: Tensor  # float[B, h]: the perceptron's share of the user fields
    shares: Tensor  # float[B, GENRE_SLOTS]


class DIN(FieldModel[DINUser]):
    """See the module docstring; both first maps are split, the attention is the candidate's."""

    def __init__(self, config: DINConfig) -> None:
        super().__init__(config, RankingFields(config.num_items, config.width))
        self.type_table = nn.Embedding(2, config.width)
        nn.init.normal_(self.type_table.weight, std=0.05)
        self.attention = TargetAttention(config.width, config.attention)
        self.deep = SplitMLP((NUM_FIELDS + 1) * config.width, config.hidden)
        self.towers = TaskTowers(len(self.tasks), self.deep.out_width, config.tower, config.dropout)

    def user_side(self, batch: UserBatch) -> DINUser:
        fields, shares = self.fields.user(batch)
        history = torch.as_tensor(batch.history, device=self.device)
        liked = torch.as_tensor(batch.history_liked, device=self.device)
        keys = self.fields.item_table(history) + self.type_table(liked.long())
        hidden = self.deep.user_part(fields.flatten(1))
        return DINUser(keys, history > 0, self.attention.key_part(keys), hidden, shares)

    def row_logits(self, user: DINUser, candidates: Candidates) -> Tensor:
        rest, row_user = self.candidate_fields(user.shares, candidates), candidates.user
        interest = self.attention(
            rest[:, ITEM_ID], user.keys[row_user], user.keep[row_user], user.key_part[row_user]
        )
        columns = torch.cat([rest.flatten(1), interest], dim=1)
        return self.towers(self.deep.from_parts(user.hidden[row_user], columns))
