"""SSL two-tower retrieval: candidate generation with one vector per user.

"Self-supervised Learning for Large-scale Item Recommendations", CIKM'21, arXiv 2007.12865. The
towers' last layer is the embedding and cosine is the similarity (eq. 1); beside the in-batch
softmax of query and item (L_main) the item tower learns to recognise an item from two partly
hidden views of it (L_self, eq. 2, over items drawn uniformly): L = L_main + alpha L_self (eq. 3).

The towers read the fields that the domain declares for retrieval: the item tower the item and its
own fields, the query tower (Tandem's) the user's, the history's newest items as a mean of their
own. They share the embeddings of items and of values that both sides have.

An item that the model does not know (`models/rows.py`) has the default for its id and its own other
fields, as in the views that hide the id: it is found by them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from models.catalogue import ItemTable
from models.declared_inputs import DeclaredInputs
from models.inputs import UserBatch
from models.layers.embedding_tables import EmbeddingOptions, EmbeddingTables, Features
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
from models.rows import by_blocks
from models.schema.inputs import HISTORY, ITEM, KINDS, FeatureSchema, Input, Reads

RECENT = "(recent)"  # the newest of the history
INIT_STD = 0.1


@dataclass(frozen=True)
class SSLTwoTowerConfig:
    """Sizes and loss settings.

    What the paper leaves open: `cfm_size` and `mi_neighbours` are explained at `mask_sets`. MI is
    over the catalogue or, with `mi_source` "log", over the training clicks. `default_emb` "zero"
    freezes the embedding of hidden and missing values at zero.
    """

    field_width: int = 64
    hidden: tuple[int, ...] = (256,)
    width: int = 64
    temperature: float = 0.07
    alpha: float = 0.3
    value_dropout: float = 0.3
    # The paper publishes none. On ml-latest-small it decides: validation recall@50 (6 epochs) is
    # .18 with the correction and .10 without, below popularity's and Markov's .09 and .12.
    logq_correction: bool = True
    recent: int = 5  # newest events that get a mean of their own
    cfm_size: CFMSize = "half"
    mi_source: MISource = "corpus"
    mi_neighbours: MINeighbours = "exclude_id"
    default_emb: DefaultEmbedding = "learned"
    mask_accidental_hits: bool = True


class SSLTwoTower(nn.Module):
    """See the module docstring. Item features are buffers set by `load_items`."""

    source = "ssl_two_tower"
    num_interests = 1
    hidden_fields: Tensor
    log_q: Tensor

    def __init__(self, config: SSLTwoTowerConfig, reads: Reads) -> None:
        super().__init__()
        self.cfg, self.reads = config, reads
        self.inputs = DeclaredInputs(reads)
        e, schema = config.field_width, _with_recent(reads.schema)
        options = EmbeddingOptions(**vars(reads.tables), init_std=INIT_STD)
        self.tables = EmbeddingTables(schema, e, options)
        self.fields = tuple(i for kind in KINDS for i in schema.of(kind, "item"))
        self.default = nn.Parameter(torch.empty(len(self.fields), e))
        nn.init.normal_(self.default, std=INIT_STD)
        if config.default_emb == "zero":
            nn.init.zeros_(self.default).requires_grad_(False)
        self.item_mlp = mlp(len(self.fields) * e, config.hidden, config.width)
        self.query_mlp = mlp(schema.fields("user") * e, config.hidden, config.width)
        # Needed by the loss only, therefore not part of what is published.
        hidden = torch.zeros(len(self.fields), len(self.fields), dtype=torch.bool)
        self.register_buffer("hidden_fields", hidden, persistent=False)
        self.register_buffer("log_q", torch.zeros(self.num_items + 1), persistent=False)

    @property
    def num_items(self) -> int:
        return self.fields[0].size - 1

    def config(self) -> dict[str, Any]:
        return asdict(self.cfg)

    @property
    def device(self) -> torch.device:
        return self.default.device

    def load_items(self, items: ItemTable, known: ItemTable | None = None) -> None:
        """Take the item features from the table that the model is trained or served with; `known`
        is its own, unless that is the same."""
        self.inputs.load_items(items, known)

    def follow_items(self, items: ItemTable, known: ItemTable, rows: np.ndarray) -> bool:
        """As `load_items`, of a later state: `rows` int64, ascending, have changed or are new."""
        self.inputs.follow_items(items, known, rows)
        return True

    def places(self, rows: Tensor) -> Tensor:
        """bool[N]: every item has a place, by its fields."""
        return rows > 0

    def learn(self, items: ItemTable, users: UserBatch) -> None:
        """As `DeclaredInputs.learn`."""
        self.inputs.learn(items, users)

    def prepare_training(self, items: ItemTable, train_clicks: np.ndarray) -> None:
        """Precompute the CFM masks, and log Q from the training clicks int[n + 1] of each item."""
        self.load_items(items)
        cfg = self.cfg
        weight = train_clicks[1:] if cfg.mi_source == "log" else None
        information = pairwise_information(self.incidence(), weight)
        hidden = mask_sets(information, self._place(ITEM), cfg.cfm_size, cfg.mi_neighbours)
        self.hidden_fields = torch.from_numpy(hidden).to(self.device)
        self.log_q = log_frequency(train_clicks).to(self.device)

    def _place(self, name: str) -> int:
        return [each.name for each in self.fields].index(name)

    # Item side

    def item_fields(
        self, rows: Tensor, value_dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Field embeddings float[B, F, e] of item rows int64[B]; default where there is no value.

        Each value of a bag is dropped with probability `value_dropout`.
        """
        features = self.inputs.items(rows)
        if value_dropout:
            lists = dict(features.lists)
            for bag in self.tables.schema.of("bag", "item"):
                ids = lists[bag.name]
                lists[bag.name] = ids * kept_values(ids > 0, value_dropout, generator)
            features = features._replace(lists=lists)
        present = self._present(features, rows)
        return torch.where(present[:, :, None], self.tables(features, "item"), self.default)

    def _present(self, features: Features, rows: Tensor) -> Tensor:
        """bool[B, F]: which fields have a value; of the unknown item none has."""
        schema = self.tables.schema
        parts = [features.ids > 0]
        if numbers := len(schema.of("number", "item")):
            parts.append((rows > 0)[:, None].expand(-1, numbers))
        lists = [*schema.of("bag", "item"), *schema.of("vector", "item")]
        parts += [(features.lists[each.name] != 0).any(1, keepdim=True) for each in lists]
        return torch.cat(parts, dim=1)

    def encode_fields(self, fields: Tensor) -> Tensor:
        """x = f_x(item): float[B, d] of field embeddings float[B, F, e], not normalised."""
        return self.item_mlp(fields.flatten(1))

    def views(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of each item, float[B, F, e]: complementary masks, one seed field per batch."""
        seed = int(torch.randint(len(self.fields), (), generator=generator))
        hide = self.hidden_fields[seed][:, None]
        dropout = self.cfg.value_dropout
        first = self.item_fields(rows, dropout, generator)
        second = self.item_fields(rows, dropout, generator)
        return torch.where(hide, self.default, first), torch.where(hide, second, self.default)

    @torch.no_grad()
    def item_vectors(self, rows: np.ndarray | None = None) -> Tensor:
        """float32[n + 1, d], L2-normalised; row 0 is an item of which nothing is known. Or those of
        `rows` int64[N]."""
        rows = np.arange(len(self.inputs.item_ids)) if rows is None else rows

        def vectors(part: Tensor) -> Tensor:
            return functional.normalize(self.encode_fields(self.item_fields(part)), dim=1)

        return by_blocks(vectors, rows, self.device)

    def incidence(self) -> list[csr_matrix]:
        """Item x value matrices of the fields, for mutual information; of numbers and vectors,
        which have no values to count, empty ones."""
        rows = torch.arange(1, self.num_items + 1, device=self.device)
        features, at = self.inputs.items(rows), 0
        found = []
        for field in self.fields:
            ids = np.zeros((len(rows), 0), np.int64)
            if field.kind == "id":
                ids, at = features.ids[:, at : at + 1].cpu().numpy(), at + 1
            elif field.kind == "bag":
                ids = features.lists[field.name].cpu().numpy()
            item, slot = np.nonzero(ids)
            value = ids[item, slot]
            shape = (len(rows), max(field.size, 1))
            matrix = csr_matrix((np.ones(len(item)), (item, value)), shape=shape)
            matrix.data[:] = 1.0  # a value that is given twice is one
            found.append(matrix)
        return found

    # Query side

    def encode_query(self, batch: UserBatch) -> Tensor:
        """q = f_q(user): float[B, d], not normalised."""
        users = self.inputs.user(batch).features
        if HISTORY in users.lists:
            newest = users.lists[HISTORY][:, : self.cfg.recent]
            users = users._replace(lists={**users.lists, RECENT: newest})
        return self.query_mlp(self.tables(users, "user").flatten(1))

    @torch.no_grad()
    def encode_users(self, batch: UserBatch) -> Tensor:
        """float32[B, 1, d], L2-normalised."""
        return functional.normalize(self.encode_query(batch), dim=1)[:, None]

    # Loss

    def loss(self, batch: UserBatch, targets: Tensor, generator: torch.Generator) -> Tensor:
        """L_main + alpha L_self of users and the items int64[B] that they chose next."""
        cfg = self.cfg
        main = in_batch_softmax(
            self.encode_query(batch),
            self.encode_fields(self.item_fields(targets)),
            targets,
            cfg.temperature,
            self.log_q[targets] if cfg.logq_correction else None,
            cfg.mask_accidental_hits,
        )
        if not cfg.alpha or len(self.fields) < 2:  # of one field there are no two views
            return main
        corpus = corpus_items(self.num_items, targets, generator)
        first, second = self.views(corpus, generator)
        own = in_batch_softmax(
            self.encode_fields(first),
            self.encode_fields(second),
            corpus,
            cfg.temperature,
            mask_accidental_hits=cfg.mask_accidental_hits,
        )
        return main + cfg.alpha * own


def _with_recent(schema: FeatureSchema) -> FeatureSchema:
    """With the newest items of the history as a bag of the user's side."""
    if not schema.histories:
        return schema
    size = schema.histories[0].size
    recent = Input(name=RECENT, kind="bag", side="user", size=size, table=ITEM)
    return replace(schema, inputs=(*schema.inputs, recent))
