"""SSL two-tower retrieval: candidate generation with one vector per user.

"Self-supervised Learning for Large-scale Item Recommendations", CIKM'21, arXiv 2007.12865. The
towers' last layer is the embedding and cosine is the similarity (eq. 1); beside the in-batch
softmax of query and item (L_main) the item tower learns to recognise an item from two partly
hidden views of it (L_self, eq. 2, over items drawn uniformly): L = L_main + alpha L_self (eq. 3).

The query tower is Tandem's: the user's newest clicks and likes as mean item embeddings, genre
shares, activity and idle time. It shares the id and genre tables with the item tower.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.layers.embedding import YEAR_BUCKETS, log_bucket, masked_mean, year_bucket
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
from models.schema.films import GENRE_SLOTS, MODEL_HISTORY

FIELDS = ("id", "year", "genres", "tags")
ACTIVITY_BUCKETS, IDLE_BUCKETS = 14, 32


@dataclass(frozen=True)
class SSLTwoTowerConfig:
    """Sizes and loss settings; `num_items` and `num_tags` exclude the unknown row 0.

    What the paper leaves open: `cfm_size` and `mi_neighbours` are explained at `mask_sets`. MI is
    over the catalogue or, with `mi_source` "log", over the training clicks. `default_emb` "zero"
    freezes the embedding of hidden and missing values at zero.
    """

    num_items: int
    num_tags: int
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

    def __init__(self, config: SSLTwoTowerConfig) -> None:
        super().__init__()
        self.cfg = config
        e = config.field_width
        self.id_table = nn.Embedding(config.num_items + 1, e)
        self.year_table = nn.Embedding(YEAR_BUCKETS, e)
        self.genre_table = nn.Embedding(GENRE_SLOTS, e)
        self.tag_table = nn.Embedding(config.num_tags + 1, e)
        self.activity_table = nn.Embedding(ACTIVITY_BUCKETS, e)
        self.idle_table = nn.Embedding(IDLE_BUCKETS, e)
        self.default = nn.Parameter(torch.empty(len(FIELDS), e))
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.1)
        if config.default_emb == "zero":
            nn.init.zeros_(self.default).requires_grad_(False)
        self.item_mlp = mlp(len(FIELDS) * e, config.hidden, config.width)
        self.query_mlp = mlp(6 * e, config.hidden, config.width)
        rows = config.num_items + 1
        self.register_buffer("years", torch.zeros(rows, dtype=torch.long), persistent=False)
        self.register_buffer("genres", torch.zeros(rows, GENRE_SLOTS), persistent=False)
        self.register_buffer("tags", torch.zeros(rows, 1, dtype=torch.long), persistent=False)
        # Needed by the loss only, therefore not part of what is published.
        hidden = torch.zeros(len(FIELDS), len(FIELDS), dtype=torch.bool)
        self.register_buffer("hidden_fields", hidden, persistent=False)
        self.register_buffer("log_q", torch.zeros(rows), persistent=False)

    def config(self) -> dict[str, Any]:
        return asdict(self.cfg)

    @property
    def device(self) -> torch.device:
        return self.default.device

    def load_items(self, items: ItemTable) -> None:
        """Take the item features from the table that the model is trained or served with."""
        if len(items) != self.cfg.num_items:
            raise ValueError(f"model of {self.cfg.num_items} items, table of {len(items)}")
        years = torch.from_numpy(items.features["year"].astype(np.int64)).to(self.device)
        self.years = year_bucket(years)
        genres = items.multi_hot("genres", GENRE_SLOTS - 1)
        self.genres = torch.from_numpy(genres).to(self.device)
        self.tags = torch.from_numpy(items.ids_of("tags")).to(self.device)

    def prepare_training(self, items: ItemTable, train_clicks: np.ndarray) -> None:
        """Precompute the CFM masks, and log Q from the training clicks int[n + 1] of each item."""
        self.load_items(items)
        cfg = self.cfg
        weight = train_clicks[1:] if cfg.mi_source == "log" else None
        information = pairwise_information(incidence(items), weight)
        hidden = mask_sets(information, FIELDS.index("id"), cfg.cfm_size, cfg.mi_neighbours)
        self.hidden_fields = torch.from_numpy(hidden).to(self.device)
        self.log_q = log_frequency(train_clicks).to(self.device)

    # Item side

    def item_fields(
        self, rows: Tensor, value_dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Field embeddings float[B, 4, e] of item rows int64[B]; default where there is no value.

        Each value of genres and tags is dropped with probability `value_dropout`.
        """
        genre_keep, tags = self.genres[rows] > 0, self.tags[rows]
        tag_keep = tags > 0
        if value_dropout:
            genre_keep = genre_keep & kept_values(genre_keep, value_dropout, generator)
            tag_keep = tag_keep & kept_values(tag_keep, value_dropout, generator)
        every_genre = self.genre_table.weight.expand(rows.shape[0], -1, -1)
        genre = masked_mean(every_genre, genre_keep)
        tag = masked_mean(self.tag_table(tags), tag_keep)
        years = self.years[rows]
        fields = torch.stack([self.id_table(rows), self.year_table(years), genre, tag], dim=1)
        present = torch.stack([rows > 0, years > 0, genre_keep.any(1), tag_keep.any(1)], dim=1)
        return torch.where(present[:, :, None], fields, self.default)

    def encode_fields(self, fields: Tensor) -> Tensor:
        """x = f_x(item): float[B, d] of field embeddings float[B, 4, e], not normalised."""
        return self.item_mlp(fields.flatten(1))

    def views(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of each item, float[B, 4, e]: complementary masks, one seed field per batch."""
        seed = int(torch.randint(len(FIELDS), (), generator=generator))
        hide = self.hidden_fields[seed][:, None]
        dropout = self.cfg.value_dropout
        first = self.item_fields(rows, dropout, generator)
        second = self.item_fields(rows, dropout, generator)
        return torch.where(hide, self.default, first), torch.where(hide, second, self.default)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """float32[n + 1, d], L2-normalised; row 0 is an item of which nothing is known."""
        rows = torch.arange(self.cfg.num_items + 1, device=self.device)
        vectors = [self.encode_fields(self.item_fields(part)) for part in rows.split(4096)]
        return functional.normalize(torch.cat(vectors), dim=1)

    # Query side

    def encode_query(self, batch: UserBatch) -> Tensor:
        """q = f_q(user): float[B, d], not normalised."""

        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

        events = to(batch.history), to(batch.history_liked)
        return self.encode_user(*events, to(batch.counts), to(batch.idle_s), to(batch.genres))

    def encode_user(
        self, history: Tensor, liked: Tensor, counts: Tensor, idle: Tensor, genres: Tensor
    ) -> Tensor:
        """q of the tensors of a `UserBatch`: what is exported, before normalisation."""
        known = history > 0
        newest = torch.arange(MODEL_HISTORY, device=self.device) < self.cfg.recent
        clicked = self.id_table(history)
        parts = [masked_mean(clicked, keep) for keep in (known, known & liked, known & newest)]
        parts.append(genres @ self.genre_table.weight)
        parts.append(self.activity_table(log_bucket(counts[:, 1], ACTIVITY_BUCKETS)))
        parts.append(self.idle_table(log_bucket(idle, IDLE_BUCKETS)))
        return self.query_mlp(torch.cat(parts, dim=1))

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
        if not cfg.alpha:
            return main
        corpus = corpus_items(cfg.num_items, targets, generator)
        first, second = self.views(corpus, generator)
        own = in_batch_softmax(
            self.encode_fields(first),
            self.encode_fields(second),
            corpus,
            cfg.temperature,
            mask_accidental_hits=cfg.mask_accidental_hits,
        )
        return main + cfg.alpha * own


def incidence(items: ItemTable) -> list[csr_matrix]:
    """Item x value matrices of the four FIELDS, for mutual information."""
    n = len(items)
    rows = np.arange(n)
    years = year_bucket(torch.from_numpy(items.features["year"][1:].astype(np.int64))).numpy()
    genres, tags = items.multi_hot("genres", GENRE_SLOTS - 1)[1:], items.ids_of("tags")[1:]
    tag_item, tag_slot = np.nonzero(tags)
    dated = years > 0

    def ones(item: np.ndarray, value: np.ndarray, width: int) -> csr_matrix:
        return csr_matrix((np.ones(len(item)), (item, value)), shape=(n, width))

    return [
        ones(rows, rows, n),
        ones(rows[dated], years[dated], YEAR_BUCKETS),
        csr_matrix(genres.astype(np.float64)),
        ones(tag_item, tags[tag_item, tag_slot], int(tags.max(initial=0)) + 1),
    ]
