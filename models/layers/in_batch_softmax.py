"""In-batch softmax over cosine similarities: the loss of two-tower retrieval."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def in_batch_softmax(
    query: Tensor,
    item: Tensor,
    item_ids: Tensor,
    temperature: float,
    log_q: Tensor | None = None,
) -> Tensor:
    """-1/N sum_i log softmax_j(cos(query_i, item_j) / temperature)[i], a scalar.

    `query`, `item` float[N, d], `item_ids` int64[N]. Another row with the same item is not a
    negative but an accidental hit and is masked. `log_q` float[N], the log of each item's sampling
    frequency, is subtracted from its column (logQ correction): without it popular items, which are
    negatives as often as they are positives, are pushed down.
    """
    logits = functional.normalize(query, dim=1) @ functional.normalize(item, dim=1).T
    logits = logits / temperature
    if log_q is not None:
        logits = logits - log_q
    same = item_ids[:, None] == item_ids[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return functional.cross_entropy(logits, target)
