"""Correlated feature masking (CFM): what the two views of an item hide.

"Self-supervised Learning for Large-scale Item Recommendations" (CIKM'21, arXiv 2007.12865),
section 4.2. View 1 hides a random seed field and the fields that share most information with it,
view 2 hides the others, so that neither view can be completed from its own redundancy. Then each
view loses values of its bags at random. Draws are those of the whole batch, whatever the number of
data-parallel workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from models.layers import shared_batch

CFMSize = Literal["half", "paper"]
MISource = Literal["corpus", "log"]
MINeighbours = Literal["exclude_id", "all"]
DefaultEmbedding = Literal["learned", "zero"]


def mutual_information(
    a: csr_matrix, b: csr_matrix, item_weight: np.ndarray | None = None
) -> float:
    """MI in nats of two fields given as item x value incidence matrices.

    Items weigh `item_weight` float[N] (their number of interactions for the MI of the log), the
    same unless given (the MI of the corpus). An item with |A| and |B| values gives each of its
    pairs weight 1/(|A||B|) of its own; items that lack one of the fields are left out.
    """
    weight = np.ones(a.shape[0]) if item_weight is None else item_weight
    size_a, size_b = np.asarray(a.sum(1)).ravel(), np.asarray(b.sum(1)).ravel()
    both = (size_a > 0) & (size_b > 0) & (weight > 0)
    if not both.any():
        return 0.0
    weight = weight[both].astype(np.float64)
    of_a = a[both].multiply(1.0 / size_a[both][:, None]).tocsr()
    of_b = b[both].multiply(1.0 / size_b[both][:, None]).tocsr()
    joint = (of_a.multiply(weight[:, None]).tocsr().T @ of_b).tocoo()
    p = joint.data / weight.sum()
    p_a, p_b = (of.T @ weight / weight.sum() for of in (of_a, of_b))
    return float((p * np.log(p / (p_a[joint.row] * p_b[joint.col]))).sum())


def pairwise_information(
    fields: Sequence[csr_matrix], item_weight: np.ndarray | None = None
) -> np.ndarray:
    """Symmetric float64[k, k] of mutual information between fields, zero on the diagonal."""
    information = np.zeros((len(fields), len(fields)))
    for i, j in combinations(range(len(fields)), 2):
        found = mutual_information(fields[i], fields[j], item_weight)
        information[i, j] = information[j, i] = found
    return information


def mask_sets(
    information: np.ndarray,
    id_field: int,
    size: CFMSize = "half",
    neighbours: MINeighbours = "exclude_id",
) -> np.ndarray:
    """bool[k, k]: row s is the set of fields that view 1 hides when field s is the seed.

    `size` "half" is the seed and floor(k/2) - 1 neighbours, "paper" the published seed and
    floor(k/2), which leaves 3 fields against 1 at k = 4 and none at k = 2: ValueError below k = 3.
    `neighbours` "exclude_id" leaves the id out of the ranking: a unique id shares all of every
    field's information, so it would be everyone's nearest. It can still be the seed.
    """
    k = len(information)
    if size == "paper" and k < 3:
        raise ValueError(f"cfm_size paper hides all of {k} fields in one view: use half")
    hidden = np.eye(k, dtype=bool)
    ranking = information.copy()
    if neighbours == "exclude_id":
        ranking[:, id_field] = -1.0
    np.fill_diagonal(ranking, -2.0)
    count = max(k // 2 - (size == "half"), 0)
    for seed in range(k):
        hidden[seed, np.argsort(-ranking[seed], kind="stable")[:count]] = True
    return hidden


def kept_values(values: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor:
    """bool like `values` [B, S]: True with probability 1 - dropout, drawn on the CPU."""
    slots = values.shape[1]
    drawn = shared_batch.drawn(
        lambda rows: torch.rand((rows, slots), generator=generator), len(values)
    )
    return (drawn >= dropout).to(values.device)


def corpus_items(num_items: int, beside: Tensor, generator: torch.Generator) -> Tensor:
    """Item rows int64[B] drawn uniformly from 1..num_items, as long and where `beside` is."""
    drawn = shared_batch.drawn(
        lambda rows: torch.randint(1, num_items + 1, (rows,), generator=generator), len(beside)
    )
    return drawn.to(beside.device)
