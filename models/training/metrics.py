"""Offline metrics: recall of a list, AUC of a score, and their sampling error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Estimate:
    """A mean over users with its standard error."""

    mean: float
    standard_error: float
    users: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


def recall(ranked: np.ndarray, targets: np.ndarray) -> float:
    """|list ∩ targets| / |targets| of item rows."""
    return float(np.isin(targets, ranked).mean())


def recall_at(
    scores: np.ndarray, seen: list[np.ndarray], targets: list[np.ndarray], k: int
) -> Estimate:
    """Recall@k averaged over users. `scores` float[U, n + 1]; row 0 and seen items are removed."""
    values = np.empty(len(targets))
    for u, (row, old, wanted) in enumerate(zip(scores, seen, targets, strict=True)):
        open_ = row.astype(np.float64)
        open_[0] = -np.inf
        open_[old] = -np.inf
        values[u] = recall(np.argsort(-open_, kind="stable")[:k], wanted)
    return mean_estimate(values)


def mean_estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of one value per user."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error, len(values))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half; NaN with one class only."""
    labels = labels.astype(bool)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = rankdata(scores)[labels].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean binary cross entropy in nats."""
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-np.where(labels.astype(bool), np.log(p), np.log1p(-p)).mean())
