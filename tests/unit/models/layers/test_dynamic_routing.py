"""Dynamic routing: competition between interests, bounded capsules, gradient in one round."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.layers.dynamic_routing import coupling, route, squash
from tests.unit.models.retrieval.worlds import histories


def _votes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _, mask = histories(5, n=6, d=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    votes = torch.randn(5, 6, 3, 4, generator=generator)
    return votes, torch.randn(5, 3, 6, generator=generator), mask


def test_coupling_sums_to_one_over_interests_on_events_and_is_zero_on_padding() -> None:
    _, logits, mask = _votes()
    weights = coupling(logits, mask)
    torch.testing.assert_close(weights.sum(1), mask.float())
    assert not weights.transpose(1, 2)[~mask].any()


def test_inactive_capsules_win_nothing() -> None:
    votes, logits, mask = _votes()
    active = torch.tensor([[True, True, False]]).expand(5, -1)
    weights = coupling(logits, mask, active)
    assert not weights[:, 2].any()
    torch.testing.assert_close(weights.sum(1), mask.float())
    smaller = route(votes[:, :, :2], logits[:, :2], mask)
    torch.testing.assert_close(route(votes, logits, mask, active=active)[:, :2], smaller)


@given(scale=st.floats(0, 1e4), seed=st.integers(0, 1000))
def test_squashed_vectors_keep_their_direction_and_are_shorter_than_one(
    scale: float, seed: int
) -> None:
    vector = scale * torch.randn(8, generator=torch.Generator().manual_seed(seed)).double()
    short = squash(vector)
    norm = vector.norm()
    assert short.norm() <= 1
    torch.testing.assert_close(short, vector * norm / (1 + norm**2), atol=1e-4, rtol=1e-6)


def test_capsules_are_shorter_than_one() -> None:
    votes, logits, mask = _votes()
    assert (route(votes * 10, logits, mask).norm(dim=2) < 1).all()


def test_routing_by_the_definition() -> None:
    votes, logits, mask = _votes()
    b = logits.clone()
    for step in range(3):
        c = torch.softmax(b, dim=1) * mask[:, None]
        s = sum(c[:, :, i, None] * votes[:, i] for i in range(6))
        assert isinstance(s, torch.Tensor)
        square = s.square().sum(2, keepdim=True)
        v = square / (1 + square) * s / (square + 1e-9).sqrt()
        if step < 2:
            b = b + torch.stack([(v * votes[:, i]).sum(2) for i in range(6)], dim=2)
    torch.testing.assert_close(route(votes, logits, mask, 3), v)


def test_shared_votes_equal_the_same_votes_for_every_capsule() -> None:
    votes, logits, mask = _votes()
    shared = votes[:, :, :1]
    torch.testing.assert_close(
        route(shared, logits, mask), route(shared.expand(-1, -1, 3, -1), logits, mask)
    )


def test_gradient_reaches_the_votes_in_the_last_round_only() -> None:
    votes, logits, mask = _votes()
    votes.requires_grad_()
    (through_route,) = torch.autograd.grad(route(votes, logits, mask).square().sum(), votes)
    # The coupling of the last round, taken as a constant.
    b = logits
    with torch.no_grad():
        for _ in range(2):
            capsules = squash(torch.einsum("bkn,bnkd->bkd", coupling(b, mask), votes))
            b = b + torch.einsum("bkd,bnkd->bkn", capsules, votes)
    last = squash(torch.einsum("bkn,bnkd->bkd", coupling(b, mask), votes))
    (of_last_round,) = torch.autograd.grad(last.square().sum(), votes)
    torch.testing.assert_close(through_route, of_last_round)
