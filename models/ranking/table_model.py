"""A ranking model over the features of any table: schema, network by name, settings.

Where `models.ranking.field_model` serves the features of Tandem's own schema, `TableRanker` takes
those that a data set declares: the same networks, losses and heads, for benchmarks and for tables
of one's own. The networks are in `models/ranking/table_networks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.layers.embedding_tables import (
    EmbeddingOptions,
    EmbeddingTables,
    FeatureSchema,
    TableBatch,
)
from models.ranking.heads import multi_task_loss
from models.ranking.table_networks import NETWORKS


class TableRanker(nn.Module):
    """Logits of rows of a table; no row depends on another one.

    `settings` overrides the defaults of the model's settings; ValueError names what is unknown.
    `l2` weighs half the sum of squares of all embeddings in the loss (FuxiCTR's regulariser).
    """

    def __init__(
        self,
        schema: FeatureSchema,
        model: str,
        settings: Mapping[str, Any] | None = None,
        options: EmbeddingOptions | None = None,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        if model not in NETWORKS:
            raise ValueError(
                f"no ranking model is named {model!r}; there are {', '.join(NETWORKS)}"
            )
        kind, network = NETWORKS[model]
        known = [f.name for f in fields(kind)]
        wrong = sorted(set(settings or {}) - set(known))
        if wrong:
            raise ValueError(f"{model} has no settings {', '.join(wrong)}; it has "
                             f"{', '.join(known) or 'none'}")  # fmt: skip
        self.schema, self.model, self.tasks = schema, model, schema.tasks
        self.settings, self.l2 = kind(**(settings or {})), l2
        self.options = options or EmbeddingOptions()
        self.network = network(schema, self.settings, self.options)

    def config(self) -> dict[str, Any]:
        """Everything but the weights and the schema that is needed to build the model again."""
        return {
            "model": self.model,
            "settings": asdict(self.settings),
            "options": asdict(self.options),
            "l2": self.l2,
        }

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: TableBatch) -> Tensor:
        """Logits float[N, T]."""
        return cast(Tensor, self.network(batch))

    @torch.no_grad()
    def score(self, batch: TableBatch) -> Tensor:
        """Probabilities float32[N, T]."""
        return torch.sigmoid(self(batch).float())

    def loss(self, batch: TableBatch, labels: Tensor, known: Tensor) -> Tensor:
        """Cross entropy summed over tasks, labels float[N, T] where `known`, and the L2 term."""
        value = multi_task_loss(self(batch), labels, known)
        if self.l2:
            value = value + self.l2 * sum(t.penalty() for t in self._tables())
        return value

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def num_dense_parameters(self) -> int:
        """Without embeddings: tables, vectors of dense features, types of histories."""
        embedded = {
            id(p)
            for m in self.modules()
            if isinstance(m, EmbeddingTables | nn.Embedding)
            for p in m.parameters()
        }
        return sum(p.numel() for p in self.parameters() if id(p) not in embedded)

    def _tables(self) -> list[EmbeddingTables]:
        return [m for m in self.modules() if isinstance(m, EmbeddingTables)]
