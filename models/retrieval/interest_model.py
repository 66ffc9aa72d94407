"""What the sequence models of retrieval share: contract, item table, loss and serving.

A model turns a user's history H float[B, n, d] and mask M bool[B, n] into V float[B, K, d]; an
item's score is f(u, i) = max_k <v_k, e_i> with one table E of item vectors for history, target and
catalogue (specification section 1.1). A single-vector model is the case K = 1.

Order: histories are newest first and left-aligned everywhere (`models/inputs.py`); position p is
the (p+1)-th newest event. A position therefore means recency, also for short histories, and the
newest part of a history is a prefix of it.

Nothing but its row is known of an item: one that the model does not know (`models/rows.py`) has no
place among the others.

A user of whom nothing is known is served as one who chose the n most popular items: the zero
vectors of an empty history would rank the catalogue arbitrarily.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.layers.in_batch_softmax import log_frequency
from models.layers.interest_readout import hard_readout, interest_cosine, power_readout
from models.layers.sampled_softmax import LogUniformSampler, full_softmax, sampled_softmax
from models.rows import by_blocks, put, rows_in, with_room
from models.schema.inputs import How, Reads

Loss = Literal["sampled", "in_batch", "full", "binary"]


@dataclass(frozen=True)
class InterestConfig:
    """Sizes and loss; `num_items` excludes row 0. Defaults are those of specification section 3.

    `loss`: "sampled" is the softmax over the target and `negatives` log-uniform negatives, "full"
    over the catalogue, "in_batch" over the batch's targets. `logq_correction` subtracts log Q in
    the first and the log of the training frequency in the last. With `normalise` users and items
    have unit length (cosine) and the loss divides scores by `temperature`.
    """

    num_items: int
    width: int = 64
    interests: int = 4
    history: int = 20
    loss: Loss = "sampled"
    negatives: int = 1280  # 10 per row of a batch of 128, shared by the batch
    logq_correction: bool = True
    normalise: bool = False
    temperature: float = 1.0
    readout: Literal["hard", "power"] = "hard"
    readout_power: float = 2.0

    def __post_init__(self) -> None:
        if min(self.num_items, self.width, self.interests, self.history, self.negatives) < 1:
            raise ValueError("num_items, width, interests, history and negatives must be positive")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, is {self.temperature}")
        if self.loss == "binary" and not self._knows_binary:
            raise ValueError(f"{type(self).__name__}: the binary loss is SASRec's")

    @property
    def _knows_binary(self) -> bool:
        return False


class InterestModel(nn.Module, ABC):
    """See the module docstring. A model file adds `source` and `extract`."""

    source: str
    num_interests: int
    reads: Reads
    cfg: InterestConfig
    log_q: Tensor
    _own_rows: Tensor | None  # int64[n + 1]: of the items served; None: they are the model's own

    @property
    def of_domain(self) -> tuple[How, ...]:
        """The kinds of inputs that it reads of a declared domain."""
        return ("key", "history")

    def __init__(self, config: InterestConfig, reads: Reads | None = None) -> None:
        super().__init__()
        self.cfg = config
        if reads is not None:  # none: its items and histories are all there is
            self.reads = reads.only(*self.of_domain)
        self.num_interests = config.interests
        rows = config.num_items + 1
        self.item_table = nn.Embedding(rows, config.width, padding_idx=0)
        nn.init.xavier_uniform_(self.item_table.weight)
        with torch.no_grad():
            self.item_table.weight[0] = 0.0
        # Needed by the loss only, therefore not part of what is published.
        self.register_buffer("log_q", torch.zeros(rows), persistent=False)
        self.register_buffer("_own_rows", None, persistent=False)
        self._sampler: LogUniformSampler | None = None

    @abstractmethod
    def extract(
        self,
        history: Tensor,
        mask: Tensor,
        profile: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """V float[B, K, d] of H float[B, n, d] and M bool[B, n]; nothing is drawn at random unless
        a `generator` is given (training). What padding rows of H hold has no effect."""

    def config(self) -> dict[str, Any]:
        return asdict(self.cfg)

    @property
    def device(self) -> torch.device:
        return self.item_table.weight.device

    def load_items(self, items: ItemTable, known: ItemTable | None = None) -> None:
        """Keep which of its rows the items are; `known` is its own table, unless that is `items`.
        ValueError if it is another model's."""
        known = items if known is None else known
        if len(known) != self.cfg.num_items:
            raise ValueError(f"model of {self.cfg.num_items} items, table of {len(known)}")
        self._own_rows = None
        if known is not items:
            own = torch.from_numpy(rows_in(known, items))
            self._own_rows = with_room(own.to(self.device))

    def follow_items(self, items: ItemTable, known: ItemTable, rows: np.ndarray) -> bool:
        """As `load_items`, of a later state: `rows` int64 have changed or are new. True: it can,
        once it has another table than its own."""
        if self._own_rows is None:
            return False
        found = torch.from_numpy(rows_in(known, items, rows))
        self._own_rows = put(self._own_rows, rows, found, len(items) + 1)
        return True

    def places(self, rows: Tensor) -> Tensor:
        """bool[N]: whether it knows the items in these rows int64[N]."""
        return self._own(rows) > 0

    def _own(self, rows: Tensor) -> Tensor:
        return rows if self._own_rows is None else self._own_rows[rows]

    def learn(self, items: ItemTable, users: UserBatch) -> None:
        """As `DeclaredInputs.learn`: of items and histories there is nothing to be learned."""

    def prepare_training(self, items: ItemTable, train_clicks: np.ndarray) -> None:
        """What the loss needs: the sampler, or the frequencies of `train_clicks` int[n + 1]."""
        self.load_items(items)
        self._prepare_loss(train_clicks)

    def _prepare_loss(self, train_clicks: np.ndarray) -> None:
        log_q = torch.zeros_like(self.log_q)
        if self.cfg.loss == "sampled":
            self._sampler = LogUniformSampler(self.cfg.num_items, self.cfg.negatives)
            log_q = self._sampler.log_q
        elif self.cfg.loss == "in_batch":
            log_q = log_frequency(train_clicks)
        if self.cfg.logq_correction:
            self.log_q = log_q.to(self.device)

    # Vectors

    def rows(self, batch: UserBatch) -> Tensor:
        """The newest n item rows of each user, int64[B, n] on the device, 0 = padding."""
        newest = np.ascontiguousarray(batch.history[:, : self.cfg.history])
        return torch.from_numpy(newest).to(self.device)

    def profile(self, batch: UserBatch) -> Tensor | None:
        """p_u float[B, p] of models that use it."""
        return None

    def user_vectors(
        self,
        rows: Tensor,
        profile: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """V float[B, K, d] as scored (normalised if so configured) of item rows int64[B, n]."""
        return self._scored(self.extract(self.item_table(rows), rows > 0, profile, generator))

    def target_vectors(self, rows: Tensor) -> Tensor:
        """Item vectors as scored, float[..., d], of item rows."""
        return self._scored(self.item_table(rows))

    def _scored(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.cfg.normalise else vectors

    @torch.no_grad()
    def encode_users(self, batch: UserBatch) -> Tensor:
        """float32[B, K, d]; a user without known events stands as a lover of what is popular."""
        rows = self.rows(batch)
        popular = torch.arange(1, rows.shape[1] + 1, device=self.device)
        popular = torch.where(popular <= self.cfg.num_items, popular, 0)
        rows = torch.where((rows > 0).any(1, keepdim=True), rows, popular)
        return self.user_vectors(rows, self.profile(batch)).float()

    @torch.no_grad()
    def item_vectors(self, rows: np.ndarray | None = None) -> Tensor:
        """float32[n + 1, d], the zero vector in row 0 and for an item that it does not know; or
        those of `rows` int64[N]."""
        if rows is None:
            if self._own_rows is None:
                return self._scored(self.item_table.weight.detach()).float()
            rows = np.arange(len(self._own_rows))
        return by_blocks(lambda r: self.target_vectors(self._own(r)).float(), rows, self.device)

    @torch.no_grad()
    def score(self, users: Tensor, rows: Tensor) -> Tensor:
        """f(u, i) float[B, C] of `encode_users`' vectors float[B, K, d] and rows int64[B, C] of the
        items served.

        What a coarse ranker asks; equal to the score under which the index finds the item.
        """
        return (users @ self.target_vectors(self._own(rows)).transpose(1, 2)).amax(1)

    @torch.no_grad()
    def diagnostics(self, batch: UserBatch) -> dict[str, float]:
        """Figures worth logging beside the metrics."""
        return {"interest_cosine": float(interest_cosine(self.encode_users(batch)))}

    # Loss

    def loss(self, batch: UserBatch, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of users and the items int64[B] (rows 1..n) that they chose next."""
        vectors = self.user_vectors(self.rows(batch), self.profile(batch), generator)
        return self.interest_losses(vectors, targets, generator).mean()

    def interest_losses(
        self, interests: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of each user, float32[B], of scored interests float[B, K, d]."""
        wanted = self.target_vectors(targets)
        if self.cfg.readout == "power":
            chosen = power_readout(interests, wanted, self.cfg.readout_power)
        else:
            chosen = hard_readout(interests, wanted)
        return self.vector_losses(chosen, targets, generator)

    def vector_losses(self, vectors: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of each row, float32[M], of one scored vector float[M, d] per target int64[M]."""
        vectors = vectors / self.cfg.temperature
        if self.cfg.loss == "full":
            return full_softmax(vectors, self._scored(self.item_table.weight), targets)
        if self.cfg.loss == "in_batch":
            negatives = targets
        else:
            if self._sampler is None:
                raise RuntimeError("call prepare_training before the sampled loss")
            negatives = self._sampler.draw(generator).to(self.device)
        return sampled_softmax(
            vectors,
            self.target_vectors(targets),
            self.target_vectors(negatives),
            targets,
            negatives,
            self.log_q,
        )
