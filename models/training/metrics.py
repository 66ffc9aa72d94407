"""Offline metrics as arrays with one value per user, so that every difference can be bootstrapped.

Retrieval: `top_k` turns a block of scores into lists, `list_metrics` into recall, HR, NDCG and MAP
per user; coverage, Gini, head and tail recall, intra-list diversity and interest cosine describe
what the lists are made of. Ranking: AUC, gAUC, log loss and calibration over rows; `unit_auc`,
`unit_log_loss` and `ranking_metrics` split each into user values whose mean is the metric.

Definitions: specification of the retrieval models 1.3 and of the ranking models 1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.stats import rankdata

CLIP = 1e-12  # probabilities are kept this far from 0 and 1
SLICED_AT = 50  # head and tail recall, coverage, Gini and diversity look at this many places
HEAD_SHARE = 0.1  # head = the items with the top 10 % of training counts


@dataclass(frozen=True)
class Estimate:
    """A mean over users with its standard error."""

    mean: float
    standard_error: float
    users: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


def mean_estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of one value per user."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error, len(values))


# Lists


def top_k(scores: np.ndarray, k: int, excluded: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """int64[U, min(k, n)] item rows by decreasing score, of float[U, n + 1]; row 0 is never listed.

    `excluded[u]` are item rows that user u must not get; where fewer than k remain, the list ends
    in zeros. Equal scores: the smaller row first. `scores` is not changed.
    """
    users, width = scores.shape
    k = min(k, width - 1)
    open_ = np.array(scores, dtype=scores.dtype if scores.dtype.kind == "f" else np.float64)
    open_[:, 0] = -np.inf
    if excluded is not None:
        sizes = np.fromiter((len(rows) for rows in excluded), np.int64, len(excluded))
        if sizes.sum():
            open_[np.repeat(np.arange(users), sizes), np.concatenate(list(excluded))] = -np.inf
    if users == 0 or k == 0:
        return np.zeros((users, k), np.int64)
    if np.isnan(open_.max(axis=1)).any():
        raise ValueError("scores hold NaN: the model has diverged")
    # All rows above the k-th score, and of those equal to it the smallest.
    threshold = np.partition(open_, width - k, axis=1)[:, width - k, None]
    above = open_ > threshold
    tied = open_ == threshold
    room = k - above.sum(axis=1, keepdims=True)
    crowded = tied.sum(axis=1) > room[:, 0]
    if crowded.any():
        tied[crowded] &= np.cumsum(tied[crowded], axis=1) <= room[crowded]
    chosen = np.nonzero(above | tied)[1].reshape(users, k)
    chosen_scores = np.take_along_axis(open_, chosen, axis=1)
    order = np.argsort(-chosen_scores, axis=1, kind="stable")
    lists = np.take_along_axis(chosen, order, axis=1)
    return np.where(np.take_along_axis(chosen_scores, order, axis=1) == -np.inf, 0, lists)


def hit_matrix(lists: np.ndarray, targets: Sequence[np.ndarray]) -> np.ndarray:
    """bool[U, N]: whether the item at each place of each list is a target of that user."""
    users, _ = lists.shape
    sizes = np.fromiter((len(t) for t in targets), np.int64, len(targets))
    if not sizes.sum():
        return np.zeros(lists.shape, bool)
    wanted = np.concatenate(list(targets)).astype(np.int64)
    width = int(max(lists.max(initial=0), wanted.max())) + 1
    keys = np.unique(np.repeat(np.arange(users), sizes) * width + wanted)
    asked = np.arange(users)[:, None] * width + lists
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return (keys[at] == asked) & (lists > 0)


def list_metrics(
    lists: np.ndarray, targets: Sequence[np.ndarray], cutoffs: Sequence[int] = (10, 50)
) -> dict[str, np.ndarray]:
    """Per-user float64[U] of recall@N, hr@N, ndcg@N, ndcg_comirec@N and map@N.

    `lists` int[U, >= max N] of item rows, best first, 0 = no item; `targets[u]` the set I_u of item
    rows (repetitions count once). Specification 1.3: ndcg@N is `ndcg_std`, normalised by the
    min(N, |I_u|) best places; `ndcg_comirec` is normalised by the number of hits. A user without
    targets has NaN.
    """
    hits = hit_matrix(lists, targets)
    sizes = np.fromiter((len(np.unique(t)) for t in targets), np.float64, len(targets))
    has_targets = sizes > 0
    out: dict[str, np.ndarray] = {}
    for n in cutoffs:
        if n > lists.shape[1]:
            raise ValueError(f"metrics at {n} need lists of {n} items, got {lists.shape[1]}")
        top = hits[:, :n]
        count = top.sum(axis=1)
        discount = 1.0 / np.log2(np.arange(2, n + 2))
        ideal = np.concatenate([[0.0], np.cumsum(discount)])
        gain = top @ discount
        best = np.minimum(n, sizes).astype(np.int64)
        precision = np.cumsum(top, axis=1) / np.arange(1, n + 1)
        out[f"recall@{n}"] = _ratio(count, sizes)
        out[f"hr@{n}"] = np.where(has_targets, (count > 0).astype(np.float64), np.nan)
        out[f"ndcg@{n}"] = _ratio(gain, ideal[best])
        comirec = np.divide(gain, ideal[count], out=np.zeros(len(gain)), where=count > 0)
        out[f"ndcg_comirec@{n}"] = np.where(has_targets, comirec, np.nan)
        out[f"map@{n}"] = _ratio((precision * top).sum(axis=1), best)
    return out


def list_figures(
    lists: np.ndarray, targets: Sequence[np.ndarray], counts: np.ndarray, cutoffs: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Per-user metrics of lists int[U, N], and figures of all lists together.

    `counts` [n + 1] are training counts (head and tail). Cutoffs beyond N are left out.
    """
    at = min(SLICED_AT, lists.shape[1])
    head = head_items(counts)
    per_user = list_metrics(lists, targets, [n for n in cutoffs if n <= lists.shape[1]])
    per_user[f"head_recall@{at}"] = slice_recall(lists, targets, head, at)
    per_user[f"tail_recall@{at}"] = slice_recall(lists, targets, ~head, at)
    exposed = exposures(lists[:, :at], len(counts) - 1)
    return per_user, {f"coverage@{at}": coverage(exposed), f"gini@{at}": gini(exposed)}


def slice_recall(
    lists: np.ndarray, targets: Sequence[np.ndarray], of_interest: np.ndarray, n: int
) -> np.ndarray:
    """float64[U]: recall@n of the targets that are `of_interest` (bool[items + 1]); NaN with none.

    With `head_items(counts)` and its complement: head and tail recall.
    """
    sliced = [t[of_interest[t]] for t in targets]
    sizes = np.fromiter((len(np.unique(t)) for t in sliced), np.float64, len(sliced))
    return _ratio(hit_matrix(lists[:, :n], sliced).sum(axis=1), sizes)


def head_items(counts: np.ndarray, share: float = HEAD_SHARE) -> np.ndarray:
    """bool[n + 1]: the `share` of items (rounded up) with the largest training counts.

    Equal counts: the smaller row first, which is the more popular one in a ranked catalogue.
    """
    head = np.zeros(len(counts), bool)
    order = np.argsort(-counts[1:], kind="stable") + 1
    head[order[: int(np.ceil(share * len(order)))]] = True
    return head


def exposures(lists: np.ndarray, num_items: int) -> np.ndarray:
    """int64[num_items]: how often each item (rows 1..n) was listed. Blocks of users add up."""
    return np.bincount(lists.ravel(), minlength=num_items + 1)[1:]


def coverage(exposed: np.ndarray) -> float:
    """Share of the catalogue that at least one list holds."""
    return float((exposed > 0).mean())


def gini(exposed: np.ndarray) -> float:
    """Gini coefficient of exposures: 0 when all items are shown equally, (n - 1) / n for one item.

    G = sum_i (2 i - n - 1) x_(i) / (n sum x), x ascending. NaN when nothing was exposed.
    """
    x = np.sort(np.asarray(exposed, np.float64))
    n, total = len(x), x.sum()
    if total == 0:
        return float("nan")
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * total))


def intra_list_diversity(lists: np.ndarray, category: np.ndarray) -> np.ndarray:
    """float64[U]: share of unordered pairs of a list with different categories; NaN under 2 items.

    `category` int[n + 1] per item row. For items with several: `value_diversity`.
    """
    listed = lists > 0
    n = listed.sum(axis=1)
    pairs = n * (n - 1) / 2
    codes = np.unique(category, return_inverse=True)[1].reshape(-1)
    width = int(codes.max(initial=0)) + 1
    keys = (np.arange(len(lists))[:, None] * width + codes[lists])[listed]
    groups, size = np.unique(keys, return_counts=True)
    same = np.bincount(groups // width, size * (size - 1) / 2, minlength=len(lists))
    return _ratio(pairs - same, pairs)


def value_diversity(lists: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64[U]: mean of 1 - cosine of items' values over a list's pairs; NaN under 2 items.

    `values` float[n + 1, V] per item row; an item without any is unlike every other.
    """
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    unit = np.divide(values, norm, out=np.zeros_like(values, np.float64), where=norm > 0)
    unit[0] = 0.0
    n = (lists > 0).sum(axis=1)
    vectors = unit[lists]
    # Sum over pairs of inner products = (|sum of vectors|^2 - sum of squared norms) / 2.
    total = (vectors.sum(axis=1) ** 2).sum(axis=1) - (vectors**2).sum(axis=(1, 2))
    pairs = n * (n - 1) / 2
    return _ratio(pairs - total / 2, pairs)


def interest_cosine(vectors: np.ndarray) -> np.ndarray:
    """float64[U]: mean off-diagonal cosine of a user's K vectors, float[U, K, d]; NaN for K=1."""
    users, k, _ = vectors.shape
    if k < 2:
        return np.full(users, np.nan)
    v = vectors.astype(np.float64)
    norm = np.linalg.norm(v, axis=2, keepdims=True)
    unit = np.divide(v, norm, out=np.zeros_like(v), where=norm > 0)
    gram = np.einsum("ukd,ujd->ukj", unit, unit)
    return (gram.sum(axis=(1, 2)) - np.einsum("ukk->u", gram)) / (k * (k - 1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """float64 quotient, NaN where the denominator is 0."""
    out = np.full(len(denominator), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def recall_at(
    scores: np.ndarray, seen: list[np.ndarray], targets: list[np.ndarray], k: int
) -> Estimate:
    """Recall@k averaged over users. `scores` float[U, n + 1]; row 0 and seen items are removed."""
    lists = top_k(scores, k, seen)
    return mean_estimate(
        list_metrics(lists, targets, (lists.shape[1],))[f"recall@{lists.shape[1]}"]
    )


# Rows


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half; NaN with one class only."""
    labels = labels.astype(bool)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = rankdata(scores)[labels].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def user_auc(
    labels: np.ndarray, scores: np.ndarray, user: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(AUC float64[U], rows int64[U]) of the users, ascending; AUC is NaN for one class only."""
    positive, rank = pl.col("label"), pl.col("score").rank()
    of_user = (
        pl.DataFrame({"user": user, "label": labels.astype(np.float64), "score": scores})
        .group_by("user")
        .agg(
            rows=pl.len().cast(pl.Int64), positives=positive.sum(), rank_sum=(positive * rank).sum()
        )
        .sort("user")
    )
    rows, positives = of_user["rows"].to_numpy(), of_user["positives"].to_numpy()
    above = of_user["rank_sum"].to_numpy() - positives * (positives + 1) / 2
    return _ratio(above, positives * (rows - positives)), rows


def row_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """float64[N]: binary cross entropy of each row in nats."""
    p = np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)
    return -np.where(labels.astype(bool), np.log(p), np.log1p(-p))


def calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 20, equal_mass: bool = False
) -> float:
    """Expected calibration error: sum over bins of share * |mean label - mean probability|.

    Bins of equal width over [0, 1], or of (nearly) equal numbers of rows by probability; rows of
    the same probability are always in one bin.
    """
    p = probabilities.astype(np.float64)
    if equal_mass:
        at = np.minimum((rankdata(p, method="min") - 1) * bins // len(p), bins - 1)
    else:
        at = np.minimum(p * bins, bins - 1)
    at = at.astype(np.int64)
    gap = np.bincount(at, labels, minlength=bins) - np.bincount(at, p, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


# One value per user, with the metric as their mean


def unit_auc(labels: np.ndarray, scores: np.ndarray, user: np.ndarray) -> np.ndarray:
    """float64[U]: values of the users (ascending id) with mean AUC, for a bootstrap over users.

    The first-order expansion of AUC (its influence function; for clustered rows Obuchowski,
    Biometrics 1997): a positive contributes the share of negatives below it, a negative the share
    of positives above it, each minus AUC and divided by its class size. Resampling the values
    resamples whole users, exact up to second order. NaN when a class is missing.
    """
    labels = labels.astype(bool)
    users, at = np.unique(user, return_inverse=True)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return np.full(len(users), np.nan)
    overall, within = rankdata(scores), np.empty(len(labels))
    within[labels], within[~labels] = rankdata(scores[labels]), rankdata(scores[~labels])
    below = overall - within  # of the other class, ties half
    value = auc(labels, scores)
    part = np.where(labels, (below / negatives - value) / positives, 0.0)
    part += np.where(labels, 0.0, (1 - below / positives - value) / negatives)
    return value + len(users) * np.bincount(at, part, minlength=len(users))


def unit_log_loss(labels: np.ndarray, probabilities: np.ndarray, user: np.ndarray) -> np.ndarray:
    """float64[U]: values of the users (ascending id) with the log loss over rows as mean."""
    users, at = np.unique(user, return_inverse=True)
    losses = row_log_loss(labels, probabilities)
    mean = losses.mean()
    part = np.bincount(at, losses - mean, minlength=len(users))
    return mean + part * len(users) / len(losses)


def ranking_metrics(
    labels: np.ndarray, probabilities: np.ndarray, user: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All metrics of one task over its known rows, and the user values of those that have them."""
    values, rows = user_auc(labels, probabilities, user)
    per_unit = {
        "auc": unit_auc(labels, probabilities, user),
        "gauc": _weighted_units(values, rows),
        "uauc": values,
        "log_loss": unit_log_loss(labels, probabilities, user),
    }
    metrics = {name: _mean_known(units) for name, units in per_unit.items()}
    metrics["ece"] = calibration_error(labels, probabilities)
    metrics["ece_mass"] = calibration_error(labels, probabilities, equal_mass=True)
    return metrics, per_unit


def task_metrics(
    tasks: Sequence[str], labels: np.ndarray, known: np.ndarray, scores: np.ndarray,
    user: np.ndarray,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:  # fmt: skip
    """`ranking_metrics` of every task, e.g. "click auc", of labels, known, scores [N, T], user [N].

    User values are of all users of the rows, ascending; one without a known row of a task has NaN.
    """
    users = np.unique(user)
    metrics: dict[str, float] = {}
    per_user: dict[str, np.ndarray] = {}
    for t, task in enumerate(tasks):
        use = known[:, t]
        found, units = ranking_metrics(labels[use, t], scores[use, t], user[use])
        metrics |= {f"{task} {name}": value for name, value in found.items()}
        at = np.searchsorted(users, np.unique(user[use]))
        for name, values in units.items():
            per_user[f"{task} {name}"] = spread = np.full(len(users), np.nan)
            spread[at] = values
    names = dict.fromkeys(name.rsplit(" ", 1)[1] for name in metrics)
    ordered = [f"{task} {name}" for name in names for task in tasks]
    return {name: metrics[name] for name in ordered}, per_user


def _mean_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _weighted_units(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """User values whose mean is the mean of `values` weighted by `rows`, NaN left out."""
    both = ~np.isnan(values)
    if not both.any():
        return values
    mean = np.average(values[both], weights=rows[both])
    return mean + (values - mean) * rows / rows[both].mean()
