"""DIN ranking: the candidate attends to the user's history.

"Deep Interest Network for Click-Through Rate Prediction", KDD'18, arXiv 1706.06978. The attended
history joins the fields as one more; hidden layers are shared by the tasks and end in a tower per
task. Two departures: ReLU for Dice, which would mix rows, and an embedding of the entry's type (the
event, or which of several histories) that is added to a history item's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.split_linear import Index, SplitMLP, of_users
from models.layers.target_attention import TargetAttention
from models.ranking.heads import Head
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


@dataclass(frozen=True)
class DINConfig:
    """Sizes; `attention` is the activation unit's."""

    width: int = 16
    attention: tuple[int, ...] = (36,)
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0


class Attended(NamedTuple):
    """The histories of one field."""

    keys: Tensor  # float[B, L, k]
    keep: Tensor  # bool[B, L]
    key_part: Tensor  # float[B, L, a]: the activation unit's share of the keys


class DINUser(NamedTuple):
    """Everything about B users that their candidates share."""

    attended: tuple[Attended, ...]
    hidden: Tensor  # float[B, h]: the perceptron's share of the user fields


class DIN(Network[DINUser]):
    """See the module docstring; both first maps are split, the attention is the candidate's.

    A candidate's value of a field attends to that field's histories; without histories this is the
    perceptron alone.
    """

    def __init__(
        self, schema: FeatureSchema, settings: DINConfig, options: EmbeddingOptions | None = None
    ) -> None:
        super().__init__(schema, settings.width, options)
        names = _ids(schema)
        self.groups = [
            (names[table], tuple(h for h in schema.histories if h.table == table))
            for table in dict.fromkeys(h.table for h in schema.histories)
            if table in names
        ]
        self.types = nn.ModuleList(
            nn.Embedding(sum(h.types for h in histories), settings.width)
            for _, histories in self.groups
        )
        for types in self.types.parameters():
            nn.init.normal_(types, std=self.tables.options.init_std)
        self.attention = nn.ModuleList(
            TargetAttention(settings.width, settings.attention) for _ in self.groups
        )
        fields = self.num_fields + len(self.groups)
        self.deep = SplitMLP(fields * settings.width, settings.hidden)
        self.head = Head(len(schema.tasks), self.deep.out_width, settings.tower, settings.dropout)

    def user_part(self, users: Features) -> DINUser:
        attended = []
        for (_, histories), types, attend in zip(
            self.groups, self.types, self.attention, strict=True
        ):
            items = self.tables.sequence(users, histories)
            keys = items.tokens + types(items.types)
            part = cast(TargetAttention, attend).key_part(keys)
            attended.append(Attended(keys, items.keep, part))
        hidden = self.deep.user_part(self.user_fields(users).flatten(1))
        return DINUser(tuple(attended), hidden)

    def logits(self, user: DINUser, row_user: Index, rows: Candidates) -> Tensor:
        rest = self.row_fields(rows)
        parts = [rest.flatten(1)]
        for (field, _), attend, own in zip(self.groups, self.attention, user.attended, strict=True):
            parts.append(
                attend(
                    rest[:, field],
                    of_users(own.keys, row_user),
                    of_users(own.keep, row_user),
                    of_users(own.key_part, row_user),
                )
            )
        columns = torch.cat(parts, dim=1)
        return self.head(self.deep.from_parts(of_users(user.hidden, row_user), columns))


def _ids(schema: FeatureSchema) -> dict[str, int]:
    """The ids of items and rows, by name their numbers among the candidate's fields."""
    found = {each.name: i for i, each in enumerate(schema.of("id", "item"))}
    first = schema.fields("item")
    return found | {each.name: first + i for i, each in enumerate(schema.of("id", "row"))}
