"""Trains and measures item-to-item retrieval on pairs of consecutive items (protocol C).

Specification section 1.5: top K by cosine over the whole corpus, the query item itself left out;
recall and MAP of one target per pair, for all pairs and for those whose target is a head or a tail
item by training count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.configs import derived
from models.data.sequences import NextItemPairs
from models.retrieval.ssl_item_to_item import SSLItemToItem
from models.training.loop import LoopConfig, LoopReport, fit
from models.training.metrics import head_items, list_metrics, slice_recall, top_k

BLOCK = 512
CUTOFFS = (10, 50)


@dataclass(frozen=True)
class PairTraining:
    """Adagrad as in the paper; validation recall@50 after every epoch."""

    epochs: int = 12
    batch_size: int = 1024
    learning_rate: float = 0.02
    patience: int = 2
    seed: int = 19


def train(model: SSLItemToItem, pairs: NextItemPairs, training: PairTraining) -> LoopReport:
    """Train in place, ending with the weights of the best validation."""
    model.prepare_training(np.bincount(pairs.train[:, 1], minlength=model.num_items + 1))

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        chosen = torch.from_numpy(pairs.train[index].astype(np.int64))
        return model.loss(chosen[:, 0], chosen[:, 1], generator)

    def validate() -> float:
        return float(evaluate(model, pairs, pairs.valid)["recall@50"].mean())

    loop = derived(LoopConfig, training, optimizer="adagrad")
    return fit(model, loss, np.arange(len(pairs.train)), loop, validate, title=model.source)


def evaluate(
    model: SSLItemToItem, pairs: NextItemPairs, asked: np.ndarray
) -> dict[str, np.ndarray]:
    """Per-pair values float64[P] of each metric; NaN in head and tail recall of the other slice."""
    queries, items = model.vectors("query"), model.vectors("item")
    lists = []
    for start in range(0, len(asked), BLOCK):
        query = asked[start : start + BLOCK, 0]
        scores = (queries[torch.from_numpy(query.astype(np.int64))] @ items.T).cpu().numpy()
        lists.append(top_k(scores, max(CUTOFFS), [np.array([row]) for row in query]))
    return metrics(np.concatenate(lists), pairs, asked)


def metrics(lists: np.ndarray, pairs: NextItemPairs, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Per-pair recall, MAP and head and tail recall of lists int[P, 50]."""
    wanted = [np.array([row]) for row in asked[:, 1]]
    found = list_metrics(lists, wanted, CUTOFFS)
    out = {k: v for k, v in found.items() if k.startswith(("recall", "map"))}
    num_items = int(max(pairs.train.max(), asked.max()))
    head = head_items(np.bincount(pairs.train[:, 1], minlength=num_items + 1))
    for n in CUTOFFS:
        out[f"head_recall@{n}"] = slice_recall(lists, wanted, head, n)
        out[f"tail_recall@{n}"] = slice_recall(lists, wanted, ~head, n)
    return out


def user_values(values: dict[str, np.ndarray], user: np.ndarray) -> dict[str, np.ndarray]:
    """Per-pair values float64[P] as one value per user float64[U], of the same mean.

    A user's value is mean + (sum over the user's pairs of (v - mean)) * users / pairs: the mean
    over pairs as a ratio, to first order in how the users weigh. Drawing these values is drawing
    users with all their pairs, which are not independent. NaN pairs count for nothing; a user
    without others is NaN.
    """
    _, of = np.unique(user, return_inverse=True)
    out = {}
    for name, each in values.items():
        known = ~np.isnan(each)
        mean = float(each[known].mean()) if known.any() else float("nan")
        pairs = np.bincount(of[known], minlength=of.max() + 1)
        above = np.bincount(of[known], weights=each[known] - mean, minlength=of.max() + 1)
        users = (pairs > 0).sum()
        scale = users / max(known.sum(), 1)
        out[name] = np.where(pairs > 0, mean + above * scale, np.nan)
    return out
