"""Losses that compare the rows of a batch: workers compute what one process does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

from models.layers import shared_batch
from models.layers.feature_mask import corpus_items, kept_values
from models.layers.in_batch_softmax import in_batch_softmax
from models.layers.shared_batch import Share
from models.training import distributed

WORKERS = 2
SIZES = (7, 6, 1)  # unequal shares, equal ones, a worker without a row
ROWS = torch.tensor([4, 1, 4, 2, 1, 3, 5])  # items 4 and 1 are chosen twice: accidental hits


class Towers(nn.Module):
    """A table that both sides share, a query and an item map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(6, 5, dtype=torch.float64)
        self.query = nn.Linear(5, 4, dtype=torch.float64)
        self.item = nn.Linear(5, 4, dtype=torch.float64)
        self.log_q = torch.linspace(-3, -1, 6, dtype=torch.float64)

    def loss(self, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """A main loss with logQ and a loss of two views of drawn items, each losing values."""
        targets = ROWS[torch.from_numpy(index)]
        main = in_batch_softmax(
            self.query(self.table((targets + 1) % 6)),
            self.item(self.table(targets)),
            targets,
            0.1,
            self.log_q[targets],
        )
        corpus = corpus_items(5, targets, generator)
        first, second = (
            self.item(self.table(corpus) * kept_values(self.table(corpus), 0.3, generator))
            for _ in range(2)
        )
        return main + 0.3 * in_batch_softmax(first, second, corpus, 0.1)


def losses_and_gradients() -> list[list[Tensor]]:
    """Per size of batch this process' loss and the gradients, which workers have averaged."""
    model, generator = Towers(), torch.Generator().manual_seed(5)
    loss = distributed.shared_loss(model, model.loss)
    found = []
    for size in SIZES:
        model.zero_grad()
        value = loss(np.arange(size), generator)
        value.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([value.detach(), *gradients])
    return found


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(minutes=10), WORKERS, rank)
    with shared_batch.within(distributed.own_share(1)):
        everywhere = shared_batch.gathered(torch.full((1, 2), 0.5, dtype=torch.bfloat16))
    torch.save((losses_and_gradients(), everywhere), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[list[Tensor]], Tensor]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("workers")
    mp.start_processes(_worker, (str(folder),), WORKERS, start_method="spawn")
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORKERS)]


@pytest.mark.parametrize("number", range(len(SIZES)), ids=[f"{n} rows" for n in SIZES])
def test_workers_have_the_loss_and_the_gradient_of_one(
    number: int, workers: list[tuple[list[list[Tensor]], Tensor]]
) -> None:
    value, *gradients = losses_and_gradients()[number]
    mean = torch.stack([found[number][0] for found, _ in workers]).mean()
    torch.testing.assert_close(mean, value)
    assert len(gradients) == 5
    for found, _ in workers:
        torch.testing.assert_close(found[number][1:], gradients)


def test_half_precision_is_gathered_unrounded(
    workers: list[tuple[list[list[Tensor]], Tensor]],
) -> None:
    for _, everywhere in workers:
        assert everywhere.tolist() == [[0.5, 0.5]]


def test_outside_workers_everything_is_the_process_own() -> None:
    values = torch.randn(4, 2)
    assert shared_batch.share() is None
    assert shared_batch.gathered(values) is values
    assert shared_batch.first_row() == 0
    assert shared_batch.drawn(torch.ones, 3).tolist() == [1, 1, 1]


def test_draws_are_the_workers_part_of_the_batchs() -> None:
    def draw(rows: int) -> Tensor:
        return torch.arange(rows)

    with shared_batch.within(Share(start=2, rows=3, total=7)):
        assert shared_batch.drawn(draw, 3).tolist() == [2, 3, 4]
        assert shared_batch.first_row() == 2
    with shared_batch.within(Share(start=0, rows=0, total=7)):
        assert shared_batch.drawn(draw, 1).tolist() == [0], "stands in for no row"
