"""Everything of a ranking model but its network: config, items, serving and training entry points.

A subclass says what depends on the user alone (`user_side`) and turns that and the candidates into
logits (`row_logits`). Training and serving take the same two steps, so they cannot differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.ranking.fields import RankingFields
from models.ranking.heads import multi_task_loss

UserPart = TypeVar("UserPart")


class FieldModelConfig(Protocol):
    """What the configs of all models have: a frozen dataclass of JSON-ready values."""

    @property
    def tasks(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Candidates:
    """N rows to score; the arguments of `RankingModel.score` and what only training knows."""

    user: Tensor  # int64[N]: number of the row's user in the batch
    rows: Tensor  # int64[N]: item rows
    counters: Tensor  # float[N, 2]: decayed clicks and likes
    lifetime: Tensor | None = None  # float[N, 2]: clicks, likes at the time of the example


class FieldModel(nn.Module, ABC, Generic[UserPart]):
    """A module over `RankingFields` with the interface `models.ranking.interface.RankingModel`."""

    def __init__(self, config: FieldModelConfig, fields: RankingFields) -> None:
        super().__init__()
        self.cfg: Any = config
        self.tasks = tuple(config.tasks)
        self.fields = fields

    @abstractmethod
    def user_side(self, batch: UserBatch) -> UserPart:
        """Whatever depends on the B users alone; gradients flow through it."""

    @abstractmethod
    def row_logits(self, user: UserPart, candidates: Candidates) -> Tensor:
        """Logits float[N, T]; no row depends on another one."""

    def config(self) -> dict[str, Any]:
        return asdict(self.cfg)

    @property
    def device(self) -> torch.device:
        return self.fields.device

    def load_items(self, items: ItemTable) -> None:
        for module in self.modules():
            if isinstance(module, RankingFields):
                module.load_items(items)

    def forward(
        self,
        batch: UserBatch,
        row_user: Tensor,
        item_rows: Tensor,
        counters: Tensor,
        lifetime: Tensor | None = None,
    ) -> Tensor:
        """Logits float[N, T]; `lifetime` float[N, 2]: counts at the time of training examples."""
        candidates = Candidates(row_user, item_rows, counters, lifetime)
        return self.row_logits(self.user_side(batch), candidates)

    @torch.no_grad()
    def user_part(self, batch: UserBatch) -> UserPart:
        return self.user_side(batch)

    @torch.no_grad()
    def score(
        self, user: UserPart, row_user: Tensor, item_rows: Tensor, counters: Tensor
    ) -> Tensor:
        """Probabilities float32[N, T]; tensors are on the model's device."""
        logits = self.row_logits(user, Candidates(row_user, item_rows, counters))
        return torch.sigmoid(logits.float())

    def loss(self, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """See `models.ranking.heads.multi_task_loss`."""
        return multi_task_loss(logits, labels, known)

    def candidate_fields(self, shares: Tensor, candidates: Candidates) -> Tensor:
        """Item and cross fields float[N, 8, k]; `shares` float[B, GENRE_SLOTS] of the users."""
        return self.fields.candidate(
            shares[candidates.user], candidates.rows, candidates.counters, candidates.lifetime
        )
