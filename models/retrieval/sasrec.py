"""SASRec baseline: a causal transformer over the history, its newest state the user vector.

"Self-Attentive Sequential Recommendation", ICDM'18, arXiv 1808.09781: item embeddings times
sqrt(d) plus positions (eq. 1), blocks of causal attention and feed-forward (eq. 2-8), scores by the
shared item table (eq. 9), binary cross entropy with one random negative per step (eq. 10) or one
of the softmaxes of `interest_model`. Histories run from new to old, so position 0 is always the
newest event (as in the original, which pads at the front) and looks at all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.inputs import UserBatch
from models.layers.transformer_block import CausalBlock, older_or_self
from models.retrieval.interest_model import InterestConfig, InterestModel, Loss
from models.schema.inputs import Reads


@dataclass(frozen=True)
class SASRecConfig(InterestConfig):
    """`positions`: "all" trains every step of a history, the paper's way with one sequence per
    user; "last" only the newest, enough where every event is an example of its own."""

    interests: int = 1
    width: int = 50
    history: int = 50
    loss: Loss = "binary"
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.2
    positions: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interests != 1:
            raise ValueError("SASRec has one vector per user")

    @property
    def _knows_binary(self) -> bool:
        return True


class SASRec(InterestModel):
    """n d + blocks (5 d^2 + 6 d) + 2 d parameters beside the item table."""

    source = "sasrec"
    cfg: SASRecConfig

    def __init__(self, config: SASRecConfig, reads: Reads | None = None) -> None:
        super().__init__(config, reads)
        d = config.width
        self.position = nn.Parameter(torch.empty(config.history, d))
        nn.init.xavier_uniform_(self.position)
        blocks = [CausalBlock(d, config.heads, config.dropout) for _ in range(config.blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(d)

    def states(self, history: Tensor, mask: Tensor) -> Tensor:
        """F float[B, n, d]: state p has seen event p (0 the newest) and the older ones."""
        n, d = history.shape[1:]
        states = history.masked_fill(~mask[:, :, None], 0.0) * d**0.5 + self.position[:n]
        states = functional.dropout(states, self.cfg.dropout, self.training)
        visible = older_or_self(mask)
        for block in self.blocks:
            states = block(states, visible)
        return self.norm(states)

    def extract(
        self,
        history: Tensor,
        mask: Tensor,
        profile: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.states(history, mask)[:, :1]

    def loss(self, batch: UserBatch, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Mean over the trained steps; step p > 0 predicts event p - 1, step 0 the target."""
        rows = self.rows(batch)
        with _seeded_dropout(generator, self.device):
            states = self._scored(self.states(self.item_table(rows), rows > 0))
        labels = torch.cat([targets[:, None], rows[:, :-1]], dim=1)
        trained = rows > 0
        if self.cfg.positions == "last":
            trained = trained & (torch.arange(rows.shape[1], device=self.device) == 0)
        user = trained.nonzero()[:, 0]
        vectors, wanted = states[trained], labels[trained]
        if self.cfg.loss != "binary":
            losses = self.vector_losses(vectors, wanted, generator)
            return losses.sum() / max(len(losses), 1)
        # An item of the user's own sequence is no negative: its term is left out.
        own = torch.cat([targets[:, None], rows], dim=1)
        negative = torch.randint(1, self.cfg.num_items + 1, (len(user),), generator=generator)
        negative = negative.to(self.device)
        usable = (own[user] != negative[:, None]).all(1)
        return binary_loss(
            vectors / self.cfg.temperature,
            self.target_vectors(wanted),
            self.target_vectors(negative),
            usable,
        )


def binary_loss(vectors: Tensor, positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
    """Mean over rows of -log s(<v, e+>) - log(1 - s(<v, e->)), a scalar (eq. 10).

    All float[M, d]; `usable` bool[M] says which negatives count. Zero without rows.
    """
    attract = functional.softplus(-(vectors * positive).sum(1).float())
    repel = functional.softplus((vectors * negative).sum(1).float())
    return (attract + repel * usable).sum() / max(len(vectors), 1)


@contextmanager
def _seeded_dropout(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout inside follows `generator`, and torch's global state is left as it was."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
