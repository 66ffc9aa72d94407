"""Log-uniform sampling and the sampled softmax: probabilities, corrections, accidental hits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from models.layers.sampled_softmax import (
    LogUniformSampler,
    expected_counts,
    full_softmax,
    log_uniform,
    sampled_softmax,
)


@given(st.integers(1, 5000))
def test_probabilities_sum_to_one_and_fall_with_the_rank(n: int) -> None:
    p = log_uniform(n)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(p) < 0).all()
    assert p[0] == pytest.approx(np.log(2) / np.log(n + 1))


@given(n=st.integers(1, 2000), share=st.floats(0.001, 1))
def test_expected_counts_sum_to_the_number_of_negatives(n: int, share: float) -> None:
    count = max(1, int(share * n))
    q = expected_counts(log_uniform(n), count)
    assert q.sum() == pytest.approx(count, rel=1e-9)
    assert ((q > 0) & (q <= 1)).all()
    assert (np.diff(q) <= 0).all()


@pytest.mark.parametrize("count", [0, 6])
def test_an_impossible_number_of_negatives_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="different items"):
        expected_counts(log_uniform(5), count)


def test_a_single_draw_has_the_log_uniform_probability() -> None:
    p = log_uniform(50)
    np.testing.assert_allclose(expected_counts(p, 1), p, rtol=0.15)


def test_negatives_are_different_items_and_never_the_unknown_one() -> None:
    sampler = LogUniformSampler(100, 60)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = sampler.draw(generator)
        assert len(drawn.unique()) == 60
        assert drawn.min() >= 1
        assert drawn.max() <= 100


def test_items_are_drawn_as_often_as_expected() -> None:
    """Chi-square of inclusion counts, each a binomial with probability Q."""
    n, count, draws = 1000, 200, 3000
    sampler = LogUniformSampler(n, count)
    generator = torch.Generator().manual_seed(1)
    seen = sum(torch.bincount(sampler.draw(generator), minlength=n + 1) for _ in range(draws))
    assert isinstance(seen, torch.Tensor)
    q = sampler.log_q[1:].double().exp().numpy()

    def p_value(q: np.ndarray) -> float:
        safe = q < 0.98  # a sure item has no variance to compare with
        observed = seen[1:].numpy()[safe]
        statistic = (observed - draws * q[safe]) ** 2 / (draws * q[safe] * (1 - q[safe]))
        return float(chi2.sf(statistic.sum(), safe.sum()))

    assert p_value(q) > 0.001
    assert p_value(np.minimum(count * log_uniform(n), 0.99)) < 1e-9, "n_neg P is not the law"


def _case(
    n: int = 30, count: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(n + 1, 4, generator=generator)
    sampler = LogUniformSampler(n, count)
    negatives = sampler.draw(generator)
    targets = torch.cat([negatives[:2], torch.arange(1, 5)])
    vectors = torch.randn(6, 4, generator=generator)
    return vectors, items, targets, negatives, sampler.log_q


def _loss(
    vectors: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_q: torch.Tensor,
) -> torch.Tensor:
    return sampled_softmax(vectors, items[targets], items[negatives], targets, negatives, log_q)


def test_the_loss_by_definition_with_both_sides_corrected() -> None:
    vectors, items, targets, negatives, log_q = _case()
    losses = _loss(vectors, items, targets, negatives, log_q)
    for row in range(6):
        y = int(targets[row])
        own = vectors[row] @ items[y] - log_q[y]
        others = [vectors[row] @ items[j] - log_q[j] for j in negatives.tolist() if j != y]
        expected = torch.logsumexp(torch.stack([own, *others]), 0) - own
        torch.testing.assert_close(losses[row], expected)


def test_an_accidental_hit_is_never_in_the_denominator() -> None:
    """The target drawn as a negative too, however well it scores, changes nothing for its row."""
    vectors, items, targets, negatives, log_q = _case()
    without = torch.tensor([j for j in negatives.tolist() if j != int(targets[0])])
    with_hit = _loss(vectors[:1], items, targets[:1], negatives, log_q)
    assert len(without) == len(negatives) - 1
    torch.testing.assert_close(with_hit, _loss(vectors[:1], items, targets[:1], without, log_q))
    other_row = _loss(vectors[2:3], items, targets[2:3], negatives, log_q)
    assert other_row > _loss(vectors[2:3], items, targets[2:3], without, log_q)


def test_all_items_as_negatives_is_the_full_softmax() -> None:
    vectors, items, targets, negatives, log_q = _case(n=30, count=30)
    assert not log_q.any()
    losses = _loss(vectors, items, targets, negatives, log_q)
    torch.testing.assert_close(losses, full_softmax(vectors, items, targets))
    reference = torch.nn.functional.cross_entropy(
        vectors @ items[1:].T, targets - 1, reduction="none"
    )
    torch.testing.assert_close(losses, reference)


def test_more_negatives_than_items_are_all_items() -> None:
    sampler = LogUniformSampler(7, 1280)
    assert sampler.draw().tolist() == list(range(1, 8))


def test_the_correction_makes_the_estimate_of_the_partition_function_unbiased() -> None:
    """E[sum over negatives of exp(s) / Q] = sum over items of exp(s)."""
    n = 300
    sampler = LogUniformSampler(n, 100)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(n + 1, generator=generator).double()
    estimates = []
    for _ in range(2000):
        drawn = sampler.draw(generator)
        estimates.append((scores[drawn] - sampler.log_q[drawn]).exp().sum())
    estimate = torch.stack(estimates)
    error = estimate.std() / len(estimates) ** 0.5
    exact = scores[1:].exp().sum()
    assert abs(estimate.mean() - exact) < 4 * error + 0.005 * exact
    assert error < 0.01 * exact
