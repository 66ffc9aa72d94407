"""Embeddings of multi-valued fields, and buckets for counts and shares."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over L of values float[B, L, e] where keep bool[B, L]; zeros where nothing is kept."""
    weight = keep.to(values.dtype)
    total = torch.einsum("bl,ble->be", weight, values)
    return total / weight.sum(1, keepdim=True).clamp_min(1.0)


def log_bucket(value: Tensor, buckets: int, per_octave: float = 1.0) -> Tensor:
    """Bucket of a count or duration: 0 for 0, then `per_octave` buckets per doubling, capped."""
    return (torch.log2(value.clamp_min(0) + 1) * per_octave).ceil().long().clamp(0, buckets - 1)


def share_bucket(
    part: Tensor, whole: Tensor, buckets: int, strength: float | Tensor = 4.0
) -> Tensor:
    """Bucket 0..buckets-1 of the share part / whole, pulled towards 1/2 by `strength` trials.

    Few observations therefore land in the middle and not at an end.
    """
    share = (part + 0.5 * strength) / (whole + strength)
    return (share * buckets).long().clamp(0, buckets - 1)
