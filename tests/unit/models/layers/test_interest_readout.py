"""Readout of one interest per target, and similarity of a user's interests."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.layers.interest_readout import (
    hard_readout,
    interest_cosine,
    overlap_penalty,
    power_readout,
)


def _draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 4, 5, generator=generator), torch.randn(9, 5, generator=generator)


def test_the_hard_readout_is_the_interest_with_the_largest_product() -> None:
    interests, target = _draw()
    scores = torch.einsum("bkd,bd->bk", interests, target)
    chosen = hard_readout(interests, target)
    torch.testing.assert_close((chosen * target).sum(1), scores.amax(1))


def test_the_hard_readout_routes_all_gradient_to_one_interest_and_none_to_the_choice() -> None:
    interests, target = _draw()
    interests.requires_grad_()
    target.requires_grad_()
    hard_readout(interests, target).sum().backward()
    assert interests.grad is not None
    best = torch.einsum("bkd,bd->bk", interests, target).argmax(1)
    expected = functional.one_hot(best, 4)[:, :, None].expand(-1, -1, 5).float()
    assert torch.equal(interests.grad, expected)
    assert target.grad is None


def test_a_large_power_is_the_hard_readout_where_products_exceed_one() -> None:
    interests, target = _draw()
    interests = interests * 5
    products = torch.einsum("bkd,bd->bk", interests, target)
    large = products.amax(1) > 1.1
    assert large.sum() > 5
    soft = power_readout(interests, target, 100)
    torch.testing.assert_close(soft[large], hard_readout(interests, target)[large])
    assert torch.isfinite(power_readout(interests * 1e4, target, 100)).all()


def test_power_zero_weighs_all_interests_equally_and_one_is_plain_attention() -> None:
    interests, target = _draw()
    torch.testing.assert_close(power_readout(interests, target, 0), interests.mean(1))
    weights = torch.einsum("bkd,bd->bk", interests, target).softmax(1)
    expected = torch.einsum("bk,bkd->bd", weights, interests)
    torch.testing.assert_close(power_readout(interests, target, 1), expected)


def test_cosine_and_penalty_by_hand() -> None:
    same = torch.ones(2, 3, 4)
    orthogonal = torch.eye(4)[None, :3] * 7
    assert interest_cosine(same).item() == pytest.approx(1)
    assert overlap_penalty(same).item() == pytest.approx(1)
    assert interest_cosine(orthogonal).item() == pytest.approx(0)
    assert overlap_penalty(orthogonal).item() == pytest.approx(0)
    half = torch.tensor([[[1.0, 0.0], [0.5, 3**0.5 / 2]]])
    assert interest_cosine(half).item() == pytest.approx(0.5)
    assert overlap_penalty(half).item() == pytest.approx(0.25)
    assert torch.isnan(interest_cosine(torch.ones(2, 1, 4)))
