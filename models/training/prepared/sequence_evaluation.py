"""Measures retrieval on the cases of a split: over the whole catalogue, in blocks of users.

Everything that can be evaluated is a `Scorer`: scores float[B, n + 1] of every item row for a block
of cases. Learned models and counting baselines go through the same lists and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.data.sequences import Cases, Sequences, Split
from models.inputs import UserBatch
from models.retrieval.interface import RetrievalModel
from models.training.baselines.scorers import FITS
from models.training.metrics import (
    SLICED_AT,
    interest_cosine,
    intra_list_diversity,
    list_figures,
    list_metrics,
    top_k,
)
from models.training.prepared import domain
from models.training.results import Figures

Scorer = Callable[[Cases], np.ndarray]
BLOCK = 512  # cases whose scores of the whole catalogue are held at once
CUTOFFS = (10, 20, 50, 200)
TIE_SEED = 0


def newest_first(items: np.ndarray, start: np.ndarray, at: np.ndarray, history: int) -> np.ndarray:
    """int64[B, history]: the newest of items[start:at] first, 0 = padding."""
    index = at[:, None] - 1 - np.arange(history)
    inside = index >= start[:, None]
    return np.where(inside, items[np.where(inside, index, 0)], 0).astype(np.int64)


def neutral_batch(rows: np.ndarray) -> UserBatch:
    """Users of whom the history int64[B, n] is all that is known."""
    batch, layout = len(rows), domain.SCHEMA.layout
    return UserBatch(
        rows,
        (rows > 0) * np.uint8(domain.CHOICE),
        np.zeros(batch, layout.profile.dtype),
        np.zeros(batch, layout.given.dtype),
        np.zeros(batch, layout.context.dtype),
        np.zeros(batch, np.int64),
    )


def case_batch(sequences: Sequences, cases: Cases, history: int) -> UserBatch:
    """The users of the cases as they stand at their moment."""
    return neutral_batch(newest_first(sequences.items, cases.start, cases.cut, history))


def known_items(sequences: Sequences, cases: Cases) -> list[np.ndarray]:
    """Item rows of each case's history, oldest first."""
    spans = zip(cases.start, cases.cut, strict=True)
    return [sequences.items[start:cut] for start, cut in spans]


def targets(sequences: Sequences, cases: Cases) -> list[np.ndarray]:
    """Item rows that each case asks for."""
    return [sequences.items[cut:end] for cut, end in zip(cases.cut, cases.end, strict=True)]


# Scorers


def model_scorer(model: RetrievalModel, sequences: Sequences, history: int) -> Scorer:
    """f(u, i) = max_k <v_k, e_i>; the item vectors are computed once, now."""
    item_vectors = model.item_vectors()

    def score(cases: Cases) -> np.ndarray:
        users = model.encode_users(case_batch(sequences, cases, history))
        best = users[:, 0] @ item_vectors.T
        for k in range(1, users.shape[1]):
            best = torch.maximum(best, users[:, k] @ item_vectors.T)
        return best.float().cpu().numpy()

    return score


def counting_scorer(split: Split, name: str, **settings: Any) -> Scorer:
    """The counting baseline of that name (`scorers.FITS`), fitted on the training events."""
    sequences = split.sequences
    rows = sequences.items[split.train_events()]
    score = FITS[name](split.train_user(), rows, sequences.num_items, **settings)
    return lambda cases: score(sequences.items[cases.cut - 1], known_items(sequences, cases))


# Measuring


@dataclass(frozen=True)
class Evaluation:
    """Per-case values of each metric float[C], figures of the lists as a whole, and the lists."""

    per_case: dict[str, np.ndarray]
    overall: dict[str, float]
    lists: np.ndarray  # int64[C, N] item rows, best first, 0 = no item

    @property
    def figures(self) -> Figures:
        """Every metric that any case has, as one number; NaN cases are left out."""
        return Figures.of(self.per_case, self.overall)


def tie_order(counts: np.ndarray) -> np.ndarray:
    """int64[n + 1]: row 0, then the item rows by training count, equal counts in a drawn order.

    `counts` int[n + 1]. Row numbers are no order for ties: they follow the counts of all events,
    the test's too.
    """
    drawn = np.random.default_rng(TIE_SEED).permutation(len(counts))
    return np.concatenate([[0], 1 + np.lexsort((drawn[1:], -counts[1:]))])


def ranked_lists(split: Split, cases: Cases, scorer: Scorer, size: int) -> np.ndarray:
    """int64[C, size]: the best items for each case, seen ones removed where the protocol says.

    Equal scores: in `tie_order`, for every scorer alike.
    """
    order = tie_order(split.train_counts())
    place = np.argsort(order)
    blocks = []
    for start in range(0, len(cases), BLOCK):
        block = cases.take(slice(start, start + BLOCK))
        known = known_items(split.sequences, block) if split.filter_seen else None
        seen = None if known is None else [place[rows] for rows in known]
        blocks.append(order[top_k(scorer(block)[:, order], size, seen)])
    lists = np.concatenate(blocks)
    return np.pad(lists, ((0, 0), (0, size - lists.shape[1])))  # a catalogue below `size` items


def evaluate(
    split: Split, cases: Cases, scorer: Scorer, cutoffs: Sequence[int] = CUTOFFS
) -> Evaluation:
    """All metrics of the cases."""
    lists = ranked_lists(split, cases, scorer, max(cutoffs))
    return evaluate_lists(split, cases, lists, cutoffs)


def evaluate_lists(
    split: Split, cases: Cases, lists: np.ndarray, cutoffs: Sequence[int] = CUTOFFS
) -> Evaluation:
    """All metrics of ready lists int[C, >= max cutoff]."""
    wanted = targets(split.sequences, cases)
    per_case, overall = list_figures(lists, wanted, split.train_counts(), cutoffs)
    category = item_categories(split.sequences)
    if category is not None:
        at = min(SLICED_AT, lists.shape[1])
        per_case[f"intra_list_diversity@{at}"] = np.concatenate(
            [
                intra_list_diversity(lists[start : start + BLOCK, :at], category)
                for start in range(0, len(lists), BLOCK)
            ]
        )
    return Evaluation(per_case, overall, lists)


def item_categories(sequences: Sequences) -> np.ndarray | None:
    """int64[n + 1]: each item row's last attribute, the finest category of the sources that have
    any; an item without attributes is a category of its own. None if no item has attributes."""
    attributes = sequences.item_attributes or ()
    if not any(attributes):
        return None
    category = -np.arange(sequences.num_items + 1)
    for row, numbers in enumerate(attributes, 1):
        if numbers:
            category[row] = numbers[-1]
    return category


def mean_metric(split: Split, cases: Cases, scorer: Scorer, metric: str) -> float:
    """One metric such as "recall@50", for validation: nothing else is computed."""
    n = int(metric.split("@")[1])
    lists = ranked_lists(split, cases, scorer, n)
    return float(np.nanmean(list_metrics(lists, targets(split.sequences, cases), (n,))[metric]))


def mean_interest_cosine(model: RetrievalModel, split: Split, cases: Cases, history: int) -> float:
    """How alike a user's interests are, over up to BLOCK cases; NaN for a single interest."""
    batch = case_batch(split.sequences, cases.take(slice(BLOCK)), history)
    values = interest_cosine(model.encode_users(batch).cpu().numpy())
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def union_of_lists(lists: Sequence[np.ndarray], size: int) -> np.ndarray:
    """int64[C, size]: the sources' lists merged place by place, each item once.

    Every source gives its first, then every source its second, and so on, until `size` different
    items stand: what a router does that asks several sources for one candidate set.
    """
    depth = max(part.shape[1] for part in lists)
    padded = [np.pad(part, ((0, 0), (0, depth - part.shape[1]))) for part in lists]
    dealt = np.stack(padded, axis=2).reshape(len(lists[0]), -1)
    merged = np.zeros((len(dealt), min(size, dealt.shape[1])), np.int64)
    for row, items in zip(merged, dealt, strict=True):
        once = list(dict.fromkeys(items[items > 0].tolist()))[:size]
        row[: len(once)] = once
    return merged
