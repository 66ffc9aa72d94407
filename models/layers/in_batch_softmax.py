"""In-batch softmax over cosine similarities: the loss of two-tower retrieval."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.layers import shared_batch


def in_batch_softmax(
    query: Tensor,
    item: Tensor,
    item_ids: Tensor,
    temperature: float,
    log_q: Tensor | None = None,
    mask_accidental_hits: bool = True,
) -> Tensor:
    """-1/N sum_i log softmax_j(cos(query_i, item_j) / temperature)[i], a scalar.

    `query`, `item` float[N, d], `item_ids` int64[N]; j runs over the items of all data-parallel
    workers. Another row with the same item is not a negative but an accidental hit and is masked
    unless `mask_accidental_hits` is false.
    `log_q` float[N], the log of each item's sampling frequency, is subtracted from its column (logQ
    correction): without it popular items, which are negatives as often as they are positives, are
    pushed down.
    """
    items = shared_batch.gathered(functional.normalize(item, dim=1))
    logits = functional.normalize(query, dim=1) @ items.T / temperature
    if log_q is not None:
        logits = logits - shared_batch.gathered(log_q)
    target = shared_batch.first_row() + torch.arange(len(logits), device=logits.device)
    if mask_accidental_hits:
        same = item_ids[:, None] == shared_batch.gathered(item_ids)
        same.scatter_(1, target[:, None], False)
        logits = logits.masked_fill(same, float("-inf"))
    return functional.cross_entropy(logits, target)


def log_frequency(counts: np.ndarray) -> Tensor:
    """log Q float32[n + 1] of in-batch negatives from training counts int[n + 1], a count of 0
    standing as 1."""
    frequency = np.maximum(counts, 1) / max(int(counts.sum()), 1)
    return torch.from_numpy(np.log(frequency).astype(np.float32))
