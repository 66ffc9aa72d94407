"""SSL two-tower in the paper's own setting: from an item to the items chosen next.

"Self-supervised Learning for Large-scale Item Recommendations", CIKM'21, arXiv 2007.12865: query
and item have the same fields, embedded by shared tables and encoded by two towers; the item tower
also learns to recognise an item from two views of it. L = L_main + alpha L_self (eq. 3), both
softmaxes over cosines within the batch (eq. 1 and 2). `models/retrieval/ssl_two_tower.py` is the
model that Tandem serves, with a user as query; this one measures the method (specification 8 and
protocol C) and its ablations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from models.layers.embedding import masked_mean
from models.layers.feature_mask import (
    CFMSize,
    DefaultEmbedding,
    MINeighbours,
    MISource,
    corpus_items,
    kept_values,
    mask_sets,
    pairwise_information,
)
from models.layers.in_batch_softmax import in_batch_softmax, log_frequency
from models.layers.mlp import mlp

Augmentation = Literal["cfm", "rfm", "rfm_no_complement", "dropout", "spread_out", "fd"]
LOOKUP_ROWS = 4096


@dataclass(frozen=True)
class ItemField:
    """One field of every item: value numbers int[n + 1, S], 0 = no value, below `vocabulary`."""

    name: str
    values: np.ndarray
    vocabulary: int


@dataclass(frozen=True)
class SSLItemToItemConfig:
    """`alpha` 0 is the baseline without self-supervision.

    `augmentation`: "cfm" hides a field and its nearest by mutual information in one view and the
    rest in the other, "rfm" a random half and the rest, "rfm_no_complement" two independent random
    halves; all three also drop values of bags, which "dropout" does alone. "spread_out" keeps both
    views whole: items are pushed apart. "fd" (feature dropout) has no views and no L_self: the item
    of a pair loses each value of each field, the id too, with probability `value_dropout` (that the
    id and other single values can be lost is this project's reading).

    What else the paper leaves open: `cfm_size` and `mi_neighbours` are explained at `mask_sets`. MI
    is over the corpus or, with `mi_source` "log", over the training pairs' items. `default_emb`
    "zero" freezes the embedding of hidden and missing values at zero. `logq_correction` concerns
    L_main only.
    """

    field_width: int = 64
    hidden: tuple[int, ...] = (256,)
    width: int = 64
    temperature: float = 0.07
    alpha: float = 0.3
    augmentation: Augmentation = "cfm"
    value_dropout: float = 0.3
    cfm_size: CFMSize = "half"
    mi_source: MISource = "corpus"
    mi_neighbours: MINeighbours = "exclude_id"
    default_emb: DefaultEmbedding = "learned"
    mask_accidental_hits: bool = True
    logq_correction: bool = False


class SSLItemToItem(nn.Module):
    """See the module docstring; field 0 must be the item's id.

    `prepare_training` comes before the loss. ValueError if the fields are too few or of different
    items.
    """

    source = "ssl_item_to_item"
    values: Tensor

    def __init__(self, config: SSLItemToItemConfig, fields: tuple[ItemField, ...]) -> None:
        super().__init__()
        if len(fields) < 2 or len({len(f.values) for f in fields}) != 1:
            raise ValueError("two or more fields of the same items are needed")
        self.cfg = config
        self.num_items = len(fields[0].values) - 1
        e = config.field_width
        self.tables = nn.ModuleList(nn.Embedding(f.vocabulary, e) for f in fields)
        self.default = nn.Parameter(torch.empty(len(fields), e))
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.1)
        if config.default_emb == "zero":
            nn.init.zeros_(self.default).requires_grad_(False)
        self.query_mlp = mlp(len(fields) * e, config.hidden, config.width)
        self.item_mlp = mlp(len(fields) * e, config.hidden, config.width)
        # The fields' values side by side; `columns` are each field's own.
        values = np.concatenate([f.values for f in fields], axis=1).astype(np.int64)
        self.register_buffer("values", torch.from_numpy(values), persistent=False)
        edges = np.cumsum([0, *(f.values.shape[1] for f in fields)]).tolist()
        self.columns = list(pairwise(edges))
        self._fields = fields
        self._hidden_fields: Tensor | None = None
        self._log_q: Tensor | None = None

    def config(self) -> dict[str, Any]:
        return asdict(self.cfg)

    def prepare_training(self, train_counts: np.ndarray) -> None:
        """Precompute the CFM masks and log Q; `train_counts` int[n + 1] are of the pairs' items.

        ValueError if `cfm_size` does not fit the number of fields.
        """
        cfg = self.cfg
        weight = train_counts[1:] if cfg.mi_source == "log" else None
        information = pairwise_information([incidence(f) for f in self._fields], weight)
        hidden = mask_sets(information, 0, cfg.cfm_size, cfg.mi_neighbours)
        self._hidden_fields = torch.from_numpy(hidden)
        self._log_q = log_frequency(train_counts).to(self.default.device)

    def item_fields(
        self,
        rows: Tensor,
        value_dropout: float = 0.0,
        generator: torch.Generator | None = None,
        every_field: bool = False,
    ) -> Tensor:
        """Field embeddings float[B, k, e] of item rows int64[B]; the default without a value.

        Each value of a bag, with `every_field` of any field, is dropped with `value_dropout`.
        """
        parts = []
        chosen = self.values[rows]
        for number, (table, (left, right)) in enumerate(
            zip(self.tables, self.columns, strict=True)
        ):
            values = chosen[:, left:right]
            keep = values > 0
            bag = right - left > 1
            if value_dropout and (bag or every_field):
                keep = keep & kept_values(values, value_dropout, generator)
            embedded = masked_mean(table(values), keep) if bag else table(values[:, 0])
            present = keep.any(1, keepdim=True)
            parts.append(torch.where(present, embedded, self.default[number]))
        return torch.stack(parts, dim=1)

    def views(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of each item, float[B, k, e]; one choice of fields for the whole batch."""
        kind = self.cfg.augmentation
        if kind == "fd":
            raise ValueError("feature dropout has no views")
        if kind == "spread_out":
            whole = self.item_fields(rows)
            return whole, whole
        dropout = self.cfg.value_dropout
        first = self.item_fields(rows, dropout, generator)
        second = self.item_fields(rows, dropout, generator)
        if kind == "dropout":
            return first, second
        k = len(self.tables)
        if kind == "cfm":
            if self._hidden_fields is None:
                raise RuntimeError("call prepare_training before views by mutual information")
            hide = self._hidden_fields[int(torch.randint(k, (), generator=generator))]
        else:
            hide = torch.randperm(k, generator=generator) < k // 2
        other = ~hide
        if kind == "rfm_no_complement":
            other = torch.randperm(k, generator=generator) < k // 2
        hide, other = hide.to(first.device)[:, None], other.to(first.device)[:, None]
        return torch.where(hide, self.default, first), torch.where(other, self.default, second)

    def loss(self, query: Tensor, item: Tensor, generator: torch.Generator) -> Tensor:
        """L_main + alpha L_self of pairs of item rows int64[B] each; L_self over uniform items."""
        cfg = self.cfg
        log_q = None
        if cfg.logq_correction:
            if self._log_q is None:
                raise RuntimeError("call prepare_training before the loss with logq_correction")
            log_q = self._log_q[item]
        dropped = cfg.augmentation == "fd"
        fields = self.item_fields(item, cfg.value_dropout * dropped, generator, every_field=True)
        main = in_batch_softmax(
            self.query_mlp(self.item_fields(query).flatten(1)),
            self.item_mlp(fields.flatten(1)),
            item,
            cfg.temperature,
            log_q,
            cfg.mask_accidental_hits,
        )
        if not cfg.alpha or dropped:
            return main
        corpus = corpus_items(self.num_items, item, generator)
        first, second = self.views(corpus, generator)
        own = in_batch_softmax(
            self.item_mlp(first.flatten(1)),
            self.item_mlp(second.flatten(1)),
            corpus,
            cfg.temperature,
            mask_accidental_hits=cfg.mask_accidental_hits,
        )
        return main + cfg.alpha * own

    @torch.no_grad()
    def vectors(self, side: Literal["query", "item"]) -> Tensor:
        """float32[n + 1, d] of every item as a query or as an answer, L2-normalised."""
        tower = self.query_mlp if side == "query" else self.item_mlp
        rows = torch.arange(self.num_items + 1, device=self.default.device)
        found = [tower(self.item_fields(part).flatten(1)) for part in rows.split(LOOKUP_ROWS)]
        return functional.normalize(torch.cat(found), dim=1)


def incidence(field: ItemField) -> csr_matrix:
    """Item x value matrix of items 1..n, for mutual information."""
    values = field.values[1:]
    item, slot = np.nonzero(values)
    shape = (len(values), field.vocabulary)
    return csr_matrix((np.ones(len(item)), (item, values[item, slot])), shape=shape)


def attribute_fields(
    num_items: int, attributes: tuple[tuple[int, ...], ...], slots: int = 8
) -> tuple[ItemField, ...]:
    """Fields id, first attribute, leaf (last) attribute and the bag of up to `slots` attributes."""
    first, leaf = np.zeros((num_items + 1, 1), np.int64), np.zeros((num_items + 1, 1), np.int64)
    bag = np.zeros((num_items + 1, slots), np.int64)
    for row, numbers in enumerate(attributes, 1):
        if numbers:
            first[row], leaf[row] = numbers[0], numbers[-1]
            bag[row, : len(numbers[:slots])] = numbers[:slots]
    vocabulary = 1 + max((max(a, default=0) for a in attributes), default=0)
    return (
        ItemField("id", np.arange(num_items + 1)[:, None], num_items + 1),
        ItemField("first", first, vocabulary),
        ItemField("leaf", leaf, vocabulary),
        ItemField("bag", bag, vocabulary),
    )
