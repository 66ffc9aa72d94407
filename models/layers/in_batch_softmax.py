"""In-batch softmax over cosine similarities: the loss of two-tower retrieval."""

from __future__ import annotations

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
) -> Tensor:
    """-1/N sum_i log softmax_j(cos(query_i, item_j) / temperature)[i], a scalar.

    `query`, `item` float[N, d], `item_ids` int64[N]; j runs over the items of all data-parallel
    workers. Another row with the same item is not a negative but an accidental hit and is masked.
    `log_q` float[N], the log of each item's sampling frequency, is subtracted from its column (logQ
    correction): without it popular items, which are negatives as often as they are positives, are
    pushed down.
    """
    items = shared_batch.gathered(functional.normalize(item, dim=1))
    logits = functional.normalize(query, dim=1) @ items.T / temperature
    if log_q is not None:
        logits = logits - shared_batch.gathered(log_q)
    target = shared_batch.first_row() + torch.arange(len(logits), device=logits.device)
    same = item_ids[:, None] == shared_batch.gathered(item_ids)
    same.scatter_(1, target[:, None], False)
    logits = logits.masked_fill(same, float("-inf"))
    return functional.cross_entropy(logits, target)
