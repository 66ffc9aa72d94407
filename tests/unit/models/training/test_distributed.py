"""Shares of a batch and the weights that make their average the whole, without processes.

That the processes do so together is tested in `tests/integration/test_ray_train.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.layers.shared_batch import Share
from models.ranking.heads import task_losses
from models.training import distributed


@contextmanager
def _as_worker(rank: int, workers: int) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        patch.setattr(distributed, "world_size", lambda: workers)
        yield patch


def _shares(index: np.ndarray, workers: int) -> list[tuple[np.ndarray, float]]:
    found = []
    for rank in range(workers):
        with _as_worker(rank, workers):
            share = distributed.own_share(len(index))
            found.append((share.of(index), distributed.weight(share)))
    return found


@given(st.integers(1, 40), st.integers(1, 6))
def test_the_average_of_the_weighted_means_is_the_mean(size: int, workers: int) -> None:
    index = np.random.default_rng(size).normal(size=size)
    shares = _shares(index, workers)
    average = np.mean([part.mean() * weight for part, weight in shares])
    np.testing.assert_allclose(average, index.mean(), rtol=1e-12, atol=1e-12)
    used = np.concatenate([part for part, weight in shares if weight])
    assert (used == index).all()
    assert all(len(part) for part, _ in shares), "a loss of no examples is not a number"


@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 9))
def test_a_task_loss_is_that_of_the_whole_batch(size: int, workers: int, seed: int) -> None:
    """Labels are known for a different number of rows in each share."""
    size = max(size, workers)
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(2, size, 2, generator=generator)
    labels = (labels > 0).float()
    known = torch.rand(size, 2, generator=generator) < 0.6
    shares = _shares(np.arange(size), workers)
    counts = torch.cat([known.sum(0), torch.tensor([size])]).double()
    total = torch.zeros(())
    for rank, (part, weight) in enumerate(shares):
        with _as_worker(rank, workers) as patch:
            patch.setattr(distributed, "summed", lambda own: counts.clone())
            weights = distributed.task_weights(known[part])
        each = torch.stack([_loss(logits[part], labels[part], known[part], t) for t in range(2)])
        total += (each * weights).sum() * weight / workers
    expected = task_losses(logits, labels, known).sum()
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=1e-5)


@given(st.integers(1, 3), st.integers(4, 6), st.integers(0, 9))
def test_workers_without_a_share_count_no_rows(size: int, workers: int, seed: int) -> None:
    """A batch smaller than the number of workers: the loss is still that of the whole batch."""
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(2, size, 2, generator=generator)
    labels = (labels > 0).float()
    known = torch.rand(size, 2, generator=generator) < 0.6
    known[0, 0] = True
    index = np.arange(size)

    def run(each_worker: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The weighted losses of all workers, `each_worker` in place of the sum over them."""
        found = []
        for rank in range(workers):
            with _as_worker(rank, workers) as patch:
                patch.setattr(distributed, "summed", each_worker)
                shared = distributed.SharedLoss(nn.Identity(), loss)
                found.append(shared(index, generator))
        return found

    def loss(part: np.ndarray, _: torch.Generator) -> Tensor:
        weights = distributed.task_weights(known[part])
        each = torch.stack([_loss(logits[part], labels[part], known[part], t) for t in range(2)])
        return (each * weights).sum()

    own: list[Tensor] = []
    run(lambda counts: own.append(counts.clone()) or counts)  # type: ignore[func-returns-value]
    total = torch.stack(own).sum(0)
    assert total.tolist() == [*known.sum(0).tolist(), size]
    average = torch.stack(run(lambda counts: total.clone())).sum() / workers
    expected = task_losses(logits, labels, known).sum()
    torch.testing.assert_close(average, expected, atol=1e-6, rtol=1e-5)


def _loss(logits: Tensor, labels: Tensor, known: Tensor, task: int) -> Tensor:
    one = slice(task, task + 1)
    return task_losses(logits[:, one], labels[:, one], known[:, one]).sum()


def test_outside_workers_there_is_one() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.from_main(lambda: 0.25, torch.device("cpu")) == 0.25
    assert distributed.own_share(5) == Share(start=0, rows=5, total=5)
    assert distributed.weight(Share(0, 5, 5)) == 1.0
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(distributed.summed(values), values)
