"""How fast the training loop is: examples/s beside a plain PyTorch loop, in one run.

`make bench-training`. The plain loop is what one writes first: a Dataset that gives one example, a
DataLoader that collates them, dense gradients, AdamW as it comes, the loss read at every step. Both
train the same model with the same loss, batch size and threads, and take turns. Three cases: the
demo's MaskNet and SASRec on ml-latest-small, and SASRec with a table of 400,000 items, where dense
gradients of the table cost more than the network.

Wall-clock speed depends on what else the machine does; CPU time per step does so less, therefore
both are shown. `sparse` is lazy Adam and `bf16` rounds activations: other arithmetic than the plain
loop's, which is why `fp32` is shown beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.data import events as data
from models.data.worlds.films import dataset as films
from models.figures import console, median, print_machine, print_table, save
from models.inputs import UserBatch
from models.retrieval.sasrec import SASRec, SASRecConfig
from models.training import phases, ranking, replay
from models.training.loop import LoopConfig, fit
from models.training.ranking import Rows, rows_of, task_loss
from models.training.replay import Examples

LARGE_TABLE = 400_000
LEARNING_RATE = 1e-3
OF_ROWS = ("slate", "counters", "labels", "known")


@dataclass(frozen=True)
class Case:
    """One model on one data set; `vectorised` and `collated` are the same loss of a batch."""

    name: str
    build: Callable[[], Any]
    batch_size: int
    vectorised: Callable[[Any, np.ndarray, torch.Generator], Tensor]
    collated: Callable[[Any, dict[str, Tensor], torch.Generator], Tensor]
    variants: tuple[tuple[str, dict[str, Any]], ...]


class OneByOne(Dataset[dict[str, Any]]):
    """Examples as a map-style Dataset."""

    def __init__(self, examples: Examples, index: np.ndarray) -> None:
        self._examples, self._index = examples, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, at: int) -> dict[str, Any]:
        i = self._index[at]
        users = self._examples.users
        return {
            "history": users.history[i],
            "events": users.events[i],
            "profile": np.frombuffer(users.profile[i].tobytes(), np.uint8),
            "now_ms": users.now_ms[i],
            **{name: getattr(self._examples, name)[i] for name in OF_ROWS},
        }


def _users(examples: Examples, batch: dict[str, Tensor]) -> UserBatch:
    values = {name: batch[name].numpy() for name in ("history", "events", "profile", "now_ms")}
    return UserBatch(
        values["history"].astype(np.int64),
        values["events"],
        values["profile"].view(examples.users.profile.dtype)[:, 0],
        examples.users.given[: len(values["history"])],  # films have no given fields,
        examples.users.context[: len(values["history"])],  # and no context
        values["now_ms"],
    )


def _rows(batch: dict[str, Tensor]) -> Rows:
    """What `rows_of` makes, of collated examples."""
    slate = batch["slate"].long()
    users, size = slate.shape
    rest = {name: batch[name].flatten(0, 1) for name in OF_ROWS[1:]}
    return Rows(
        row_user=torch.arange(users).repeat_interleave(size),
        items=slate.flatten(),
        positions=torch.zeros(users * size, dtype=torch.long),  # nor places
        **rest,
    )


def _ranked(model: Any, users: UserBatch, rows: Rows) -> Tensor:
    logits = model(users, rows.row_user, rows.items, rows.counters)
    return task_loss(model, logits, rows.labels, rows.known)


def cases(dataset: data.Dataset, examples: Examples) -> list[Case]:
    n = len(dataset.items)

    def masknet() -> Any:
        model = phases.build(
            "masknet", ranking.model_config(dataset.schema, dataset.items), 0, "cpu"
        )
        model.load_items(dataset.items)
        return model

    def sasrec(items: int) -> SASRec:
        model = SASRec(SASRecConfig(items))
        # Of the catalogue it asks for the number of items alone.
        model.prepare_training(range(items), np.ones(items + 1, np.int64))  # type: ignore[arg-type]
        return model

    def next_item(model: Any, index: np.ndarray, generator: torch.Generator) -> Tensor:
        targets = torch.from_numpy(examples.item[index].astype(np.int64))
        return model.loss(examples.user_batch(index), targets, generator)

    def next_collated(model: Any, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return model.loss(_users(examples, batch), batch["slate"][:, 0].long(), generator)

    plain: tuple[tuple[str, dict[str, Any]], ...] = (
        ("loop fp32", {}),
        ("loop bf16", {"precision": "bf16"}),
    )
    large = ("loop fp32 sparse", {"sparse_embeddings": True})
    return [
        Case(
            "MaskNet", masknet, 384,
            lambda model, index, _: _ranked(
                model, examples.user_batch(index), rows_of(examples, index)
            ),
            lambda model, batch, _: _ranked(model, _users(examples, batch), _rows(batch)),
            plain,
        ),
        Case("SASRec", partial(sasrec, n), 128, next_item, next_collated, plain),
        Case(
            f"SASRec, {LARGE_TABLE:,} items", partial(sasrec, LARGE_TABLE), 128,
            next_item, next_collated,
            (plain[0], large, ("loop bf16 sparse", {"sparse_embeddings": True, **plain[1][1]})),
        ),
    ]  # fmt: skip


def plain_loop(case: Case, examples: Examples, model: Any, index: np.ndarray) -> None:
    """An epoch over `index`, written as one writes it first."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    loader = DataLoader(OneByOne(examples, index), case.batch_size, shuffle=True)
    generator = torch.Generator().manual_seed(0)
    model.train()
    total = 0.0
    for batch in loader:
        optimizer.zero_grad()
        loss = case.collated(model, batch, generator)
        loss.backward()
        optimizer.step()
        total += loss.item()


def our_loop(case: Case, changes: dict[str, Any], model: Any, index: np.ndarray) -> None:
    """The same epoch by `models/training/loop.py`."""
    config = replace(LoopConfig(1, case.batch_size, LEARNING_RATE), **changes)
    fit(model, lambda batch, generator: case.vectorised(model, batch, generator), index, config)


def measured(run: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 25,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each loop.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
) -> None:
    """Measure and print; the figures go to load_tests/results/bench_training.json."""
    torch.set_num_threads(threads)
    dataset = films.load()
    examples = replay.replay(dataset)
    known = np.flatnonzero((examples.time_ms < dataset.train_until_ms) & (examples.item > 0))
    print_machine()
    console.print(f"[dim]torch threads: {threads}; medians of {rounds} turns of {steps} steps[/]")
    rng, figures = np.random.default_rng(0), {}
    for case in cases(dataset, examples):
        times: dict[str, list[tuple[float, float]]] = {}
        loops = {"plain PyTorch": partial(plain_loop, case, examples)}
        loops |= {name: partial(our_loop, case, changes) for name, changes in case.variants}
        for turn in range(rounds + 1):
            index = rng.choice(known, steps * case.batch_size, replace=False)
            for name, loop in loops.items():
                found = measured(partial(loop, case.build(), index))
                if turn:  # the first turn warms caches and allocators
                    times.setdefault(name, []).append(found)
        figures[case.name] = _show(case, times, steps)
    save("bench_training", {"steps": steps, "rounds": rounds, "threads": threads, **figures})


def _show(case: Case, times: dict[str, list[tuple[float, float]]], steps: int) -> dict[str, Any]:
    """Print one case's table; its figures."""
    figures = {
        name: {
            "examples_per_s": case.batch_size * steps / median(wall for wall, _ in values),
            "cpu_ms_per_step": 1000 * median(cpu for _, cpu in values) / steps,
        }
        for name, values in times.items()
    }
    base = figures["plain PyTorch"]
    rows = [
        (
            name,
            f"{own['examples_per_s']:,.0f}",
            f"{own['examples_per_s'] / base['examples_per_s']:.2f}",
            f"{own['cpu_ms_per_step']:.1f}",
            f"{base['cpu_ms_per_step'] / own['cpu_ms_per_step']:.2f}",
        )
        for name, own in figures.items()
    ]
    columns = ("loop", "examples/s", "ratio", "CPU ms/step", "CPU ratio")
    print_table(f"{case.name}, batches of {case.batch_size}", columns, rows)
    return figures


if __name__ == "__main__":
    typer.run(main)
