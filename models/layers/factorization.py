"""Pairwise products of field embeddings in linear time (factorisation machines)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from models.layers.split_linear import Index


class Moments(NamedTuple):
    """Sum and sum of squares over fields, float[N, k] each; those of disjoint fields add up."""

    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, fields: Tensor) -> Moments:
        """The moments of fields float[N, m, k]."""
        return cls(fields.sum(1), fields.square().sum(1))

    def plus(self, other: Moments) -> Moments:
        return Moments(self.total + other.total, self.squares + other.squares)

    def rows(self, index: Index) -> Moments:
        """The moments of the chosen rows int64[N]."""
        return Moments(self.total[index], self.squares[index])

    def products(self) -> Tensor:
        """sum_{i<j} v_i * v_j = ((sum v)^2 - sum v^2) / 2, float[N, k]; its sum over k is FM's."""
        return 0.5 * (self.total.square() - self.squares)
