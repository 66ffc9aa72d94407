"""A training that takes milliseconds: a linear map with dropout, as a module and as a program.

`python -m tests.unit.models.training.small_training FOLDER [resume]` trains it with checkpoints and
prints the report and the final weights as its last line; the tests kill it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.training import checkpoint
from models.training.checkpoint import Checkpointing
from models.training.loop import BatchLoss, LoopConfig, LoopReport, fit

CONFIG = LoopConfig(
    epochs=4, batch_size=8, learning_rate=0.05, weight_decay=0.01, patience=4, seed=3
)
EXAMPLES = np.arange(60)
IDENTITY = {"model": "small", "parameters": {"width": 6}, "data": "drawn"}


class Small(nn.Module):
    """Table lookup, dropout (torch's global random numbers), linear map."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding(20, width)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.dropout(self.table(rows)))[:, 0]


def small(width: int = 6) -> Small:
    torch.manual_seed(11)
    return Small(width)


def loss_of(model: Small) -> BatchLoss:
    """Squared error to a target with noise from the loop's generator."""

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        rows = torch.from_numpy(index % 20)
        target = torch.sin(rows.float()) + 0.1 * torch.randn(len(rows), generator=generator)
        return (model(rows) - target).square().mean()

    return loss


def quality(model: Small) -> float:
    rows = torch.arange(20)
    with torch.no_grad():
        return -float((model(rows) - torch.sin(rows.float())).square().mean())


def train(
    file: Path | None, resume: bool = False, config: LoopConfig = CONFIG
) -> tuple[Small, LoopReport]:
    """Saves after every step when there is a file."""
    model = small()
    to = None if file is None else Checkpointing(file, IDENTITY, resume, every_s=0.0)
    return model, fit(
        model, loss_of(model), EXAMPLES, config, lambda: quality(model), checkpoint=to
    )


def facts(model: Small, report: LoopReport) -> dict[str, object]:
    """Everything but the times, exactly."""
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    return {
        "validation": list(report.validation), "losses": list(report.losses),
        "best_step": report.best_step, "steps": report.steps, "weights": weights,
    }  # fmt: skip


def main(file: Path, resume: bool) -> None:
    """Long enough to be killed in the middle; says "saved" after each checkpoint."""
    torch.set_num_threads(1)
    write = checkpoint.write

    def telling(*arguments: Any) -> None:
        write(*arguments)
        print("saved", flush=True)

    checkpoint.write = telling
    print(json.dumps(facts(*train(file, resume, LoopConfig(12, 8, 0.01, patience=12)))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "resume" in sys.argv[2:])
