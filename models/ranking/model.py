"""Ranking models: a network over the inputs of a declared domain, or over a prepared table's.

`RankingModel` is what is trained on a domain's data, published and served. The user side of a
request is computed once (`user_part`) and broadcast over its candidates; several requests are
scored in one call. `TableRanker` is the same network over a table whose rows have everything in
them (`models/data/tables.py`), for benchmarks on public data.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.catalogue import ItemTable
from models.configs import ModelConfig
from models.declared_inputs import DeclaredInputs, UserInputs
from models.inputs import UserBatch
from models.layers.embedding_tables import Candidates, EmbeddingOptions, EmbeddingTables, Features
from models.layers.split_linear import EVERY, Index
from models.ranking.heads import probabilities, task_losses
from models.ranking.network import Network, NetworkClass
from models.schema.inputs import FeatureSchema, Reads

MOST_BYTES = 256 * 2**20  # of embedded items


class UserPart(NamedTuple):
    """Whatever depends on B users alone: what rows need of them, and the network's own part."""

    inputs: UserInputs
    network: Any


class RankingModel(nn.Module):
    """A network over declared inputs, on one device. `tasks` names the columns of its scores."""

    def __init__(self, config: ModelConfig, network: NetworkClass) -> None:
        super().__init__()
        self.cfg = config
        self.tasks = config.reads.schema.tasks
        self.of_value = tuple(task.target == "value" for task in config.reads.tasks)
        self.inputs = DeclaredInputs(config.reads)
        self.network: Network[Any] = network(config.reads.schema, config.settings, config.options)
        self._remembers = False

    def config(self) -> dict[str, Any]:
        """What besides the weights and `reads` is needed to build the module again (JSON-ready)."""
        return {"settings": asdict(self.cfg.settings), "options": asdict(self.cfg.options)}

    @property
    def reads(self) -> Reads:
        """All that it reads of its domain."""
        return self.cfg.reads

    @property
    def device(self) -> torch.device:
        """Where the tensors of `score` must be."""
        return self.inputs.device

    @property
    def counters(self) -> tuple[str, ...]:
        """The columns of items' counters that `score` is given, in this order."""
        return self.reads.counters

    def load_items(self, items: ItemTable, known: ItemTable | None = None) -> None:
        """Keep what is read of the item table that is scored. `known`: the model's own, unless that
        is the same. ValueError if it is another model's, or a field is not in `items`."""
        self.inputs.load_items(items, known)
        self._forget()

    def follow_items(self, items: ItemTable, known: ItemTable, rows: np.ndarray) -> bool:
        """As `load_items`, of a later state of that table: `rows` int64, ascending, have changed or
        are new. True: it can."""
        self.inputs.follow_items(items, known, rows)
        if self._remembers:
            self._remember(rows)
        return True

    def places(self, rows: Tensor) -> Tensor:
        """bool[N]: whether it knows the items in these rows int64[N]."""
        return self.inputs.item_ids[rows, 0] > 0

    def prepare_serving(self) -> None:
        """Embed what is known of items alone once; unless that takes too much memory. For a model
        whose weights do not change any more, and items only by `follow_items`."""
        self._remember(np.arange(len(self.inputs.item_ids)))

    def _remember(self, rows: np.ndarray) -> None:
        tables, count = self._tables(), len(self.inputs.item_ids)
        numbers = count * self.reads.schema.fields("item") * sum(t.width for t in tables)
        if 4 * numbers > MOST_BYTES:
            return self._forget()
        for each in tables:
            each.remember(self.inputs.items, rows, count)
        self._remembers = True

    def _forget(self) -> None:
        for each in self._tables():
            each.forget()
        self._remembers = False

    def _tables(self) -> list[EmbeddingTables]:
        return [m for m in self.modules() if isinstance(m, EmbeddingTables)]

    def user_side(self, batch: UserBatch) -> UserPart:
        """`user_part` with gradients."""
        users = self.inputs.user(batch)
        return UserPart(users, self.network.user_part(users.features))

    def row_logits(
        self,
        user: UserPart,
        row_user: Index,
        rows: Tensor,
        counters: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        own = self.inputs.rows(user.inputs, row_user, rows, counters, positions)
        items = rows if self._remembers else self.inputs.items(rows)
        return self.network.logits(user.network, row_user, Candidates(items, own))

    def forward(
        self,
        batch: UserBatch,
        row_user: Tensor,
        item_rows: Tensor,
        counters: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits float[N, T]. `positions`: see `DeclaredInputs.rows`."""
        user = self.user_side(batch)
        return self.row_logits(user, row_user, item_rows, counters, positions)

    @torch.no_grad()
    def user_part(self, batch: UserBatch) -> UserPart:
        """Whatever depends on the B users alone."""
        return self.user_side(batch)

    @torch.no_grad()
    def score(
        self, user: UserPart, row_user: Tensor, item_rows: Tensor, counters: Tensor
    ) -> Tensor:
        """Probabilities, or expected values, float32[N, T] of rows (user int64[N] in 0..B-1, item
        row int64[N], counters float32[N, C] at the request), whose places are not known yet.

        Row 0 is scored as an item of which nothing is known: training shows items of the catalogue
        so, drawn with equal chances, with both labels. That is the mean of a catalogue at best; the
        service does not rank by it (`services/ranking`).
        """
        logits = self.row_logits(user, row_user, item_rows, counters)
        return probabilities(logits.float(), self.of_value)

    def losses(self, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """See `models.ranking.heads.task_losses`."""
        return task_losses(logits, labels, known, self.of_value)


NOTHING = Features(torch.zeros(0, 0), torch.zeros(0, 0), {}, {})


class TableBatch(NamedTuple):
    """N rows, each of a user of its own; a table's items have no features but its rows'."""

    users: Features
    rows: Features


class TableRanker(nn.Module):
    """Logits of rows of a table; no row depends on another one.

    `settings` are those of the network's config. `l2` weighs half the sum of squares of all
    embeddings in the loss (FuxiCTR's regulariser).
    """

    def __init__(
        self,
        schema: FeatureSchema,
        network: NetworkClass,
        settings: Any,
        options: EmbeddingOptions | None = None,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.schema, self.tasks, self.settings, self.l2 = schema, schema.tasks, settings, l2
        self.options = options or EmbeddingOptions()
        self.network: Network[Any] = network(schema, settings, self.options)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: TableBatch) -> Tensor:
        """Logits float[N, T]."""
        rows = Candidates(NOTHING, batch.rows)
        logits: Tensor = self.network(batch.users, EVERY, rows)
        return logits

    @torch.no_grad()
    def score(self, batch: TableBatch) -> Tensor:
        """Probabilities float32[N, T]."""
        return probabilities(self(batch).float())

    def losses(self, batch: TableBatch, labels: Tensor, known: Tensor) -> Tensor:
        """Cross entropy of each task, float[T], labels float[N, T] where `known`."""
        return task_losses(self(batch), labels, known)

    def penalty(self) -> Tensor:
        """The L2 term of the loss, a scalar."""
        if not self.l2:
            return torch.zeros((), device=self.device)
        return self.l2 * torch.stack([tables.penalty() for tables in self._tables()]).sum()

    def loss(self, batch: TableBatch, labels: Tensor, known: Tensor) -> Tensor:
        """`losses` summed over tasks, and the L2 term."""
        return self.losses(batch, labels, known).sum() + self.penalty()

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def num_dense_parameters(self) -> int:
        """Without embeddings: tables, vectors of numbers, types of histories."""
        embedded = {
            id(p)
            for m in self.modules()
            if isinstance(m, EmbeddingTables | nn.Embedding)
            for p in m.parameters()
        }
        return sum(p.numel() for p in self.parameters() if id(p) not in embedded)

    def _tables(self) -> list[EmbeddingTables]:
        return [m for m in self.modules() if isinstance(m, EmbeddingTables)]
