"""Data-parallel training: one process per worker, started by Ray Train.

Every worker walks the same shuffled batches, computes the loss of its share of each, and torch's
DistributedDataParallel averages the gradients; shares are weighted by their number of examples, so
the sum is the gradient of the whole batch and N workers follow one worker's loss curve up to
floating-point summation. That holds for losses that are means over examples with random numbers
drawn per batch, and for the two-tower's in-batch softmaxes, whose negatives and whose numbers drawn
per row are those of the whole batch (`models/layers/shared_batch.py`). Not for other losses that
compare the examples of a batch with each other: the in-batch negatives of the interest models
(`loss: in_batch`) come from a worker's own share, DESMIL-R's weights are learned within it. Nor are
other numbers drawn per row (layers' dropout, SASRec's binary negatives) the same.

The training code does not know Ray: `fit` asks this module for its rank, which outside workers is
0 of 1. This is the only module that imports ray here, and it sets Ray's environment first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from models.layers import shared_batch
from models.layers.shared_batch import Share

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AUTH_MODE": "token",  # Ray's own ports listen on every interface; only we may use them
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
RAY_EXIT_S = 5.0
BatchLoss = Callable[[np.ndarray, torch.Generator], Tensor]


class WorkersFailed(Exception):
    """A data-parallel training failed in a worker; the message says why."""


# What the loop asks, in a worker or not.


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that validates, saves and shows."""
    return rank() == 0


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over the workers (in place)."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def from_main(compute: Callable[[], float], device: torch.device) -> float:
    """What `compute` gives in the first worker, in every worker."""
    if world_size() == 1:
        return compute()
    value = torch.zeros((), dtype=torch.float64, device=device)
    if is_main():
        value.fill_(compute())
    dist.broadcast(value, 0)
    return float(value)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators follow the seed inside, another per worker, and are put back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed + rank())
        yield


def own_share(total: int) -> Share:
    """This worker's part of a batch of `total` rows; the first ones may have a row more."""
    rows, more = divmod(total, world_size())
    start = rank() * rows + min(rank(), more)
    rows += rank() < more
    return Share(start if rows else 0, rows, total)


def weight(share: Share) -> float:
    """What the mean loss of a share weighs, so that the workers' average is the batch's mean."""
    return share.rows * world_size() / share.total


class SharedLoss(nn.Module):
    """The loss of this worker's share, as a module: DistributedDataParallel wraps modules."""

    def __init__(self, model: nn.Module, loss: BatchLoss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, index: np.ndarray, generator: torch.Generator) -> Tensor:
        share = own_share(len(index))
        with shared_batch.within(share):
            return self._loss(share.of(index), generator) * weight(share)


def shared_loss(model: nn.Module, loss: BatchLoss) -> BatchLoss:
    """`loss` as it stands for a single process; in workers, gradients are averaged after it.

    Parameters that no loss depends on (INFNet's `dead_parameters`) are looked for at each step, as
    DistributedDataParallel would otherwise wait for their gradients.
    """
    if world_size() == 1:
        return loss
    return DistributedDataParallel(
        SharedLoss(model, loss), broadcast_buffers=False, find_unused_parameters=True
    )


def task_weights(known: Tensor) -> Tensor:
    """What each task's mean over this worker's known rows weighs, float[T], of known bool[N, T].

    A task's loss is a mean over the rows whose label is known, whose number differs between the
    workers; the weights correct for it, given that `weight` multiplies everything. A worker
    whose share of the batch is empty counts no rows and has weights 0 (within `SharedLoss`).
    """
    own = torch.cat([known.sum(0), known.new_full((1,), len(known), dtype=torch.long)]).double()
    share = shared_batch.share()
    if share is not None and not share.rows:
        own = torch.zeros_like(own)
    every = summed(own.clone()).clamp_min(1.0)
    if not own[-1]:
        return torch.zeros_like(own[:-1]).float()
    relative = own / every
    return (relative[:-1] / relative[-1]).float()


# Starting workers.


def run(
    function: Callable[..., tuple[nn.Module, Any]],
    arguments: Mapping[str, Any],
    workers: int,
    use_gpu: bool = False,
    threads: int = 1,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Call `function(**arguments)` in every worker; weights and report of the first.

    `function` is importable, gives a model and a JSON-ready dict, and finds its device in
    `worker_device`. The Ray cluster and its folder are of this machine and gone afterwards.
    """
    with _cluster(workers, use_gpu) as folder:
        import ray
        from ray import train
        from ray.train.torch import TorchConfig, TorchTrainer
        from safetensors.torch import load_file

        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "function": function,
                "arguments": ray.put(dict(arguments)),
                "threads": threads,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}
            ),
            run_config=train.RunConfig(storage_path=str(folder / "results"), name="train"),
        )
        try:
            result = trainer.fit()
        except train.TrainingFailedError as error:
            raise WorkersFailed(_reason(error)) from error
        assert result.checkpoint is not None
        assert result.metrics is not None
        with result.checkpoint.as_directory() as saved:
            return load_file(Path(saved) / "weights.safetensors"), dict(result.metrics)


def worker_device() -> torch.device:
    """The device that Ray Train gave to this worker."""
    from ray.train.torch import get_device

    device = get_device()
    assert isinstance(device, torch.device)
    return device


def _worker(config: dict[str, Any]) -> None:
    """What Ray runs in each worker."""
    import ray
    from ray import train
    from safetensors.torch import save_file

    torch.set_num_threads(config["threads"])
    model, report = config["function"](**ray.get(config["arguments"]))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if is_main():
            state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
            save_file(state, Path(folder) / "weights.safetensors")
            checkpoint = train.Checkpoint.from_directory(folder)
        train.report(report, checkpoint=checkpoint)


def _reason(error: Exception) -> str:
    """What the first failed worker raised, without its traceback."""
    failures = getattr(error, "worker_failures", {})
    if failures:
        number, cause = min(failures.items())
        return f"training worker {number} failed: {str(cause).strip().splitlines()[-1]}"
    return f"the training workers failed: {error}"


@contextlib.contextmanager
def _cluster(workers: int, use_gpu: bool) -> Iterator[Path]:
    """A Ray of this machine for as long as the block runs; yields its folder."""
    os.environ.update(RAY_ENVIRONMENT)
    # Ray reads its token once per process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    # Short: a Unix socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tandem-ray-"))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    try:
        ray.init(
            num_cpus=workers + 1,  # one for Ray Train's controller; they bound nothing
            num_gpus=workers if use_gpu else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace="tandem-train",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        yield folder
    finally:
        own = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
        ray.shutdown()
        # Ray does not wait for its daemons; while they live they write into the folder.
        _, alive = psutil.wait_procs(own, timeout=RAY_EXIT_S)
        for daemon in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                daemon.kill()
        psutil.wait_procs(alive, timeout=RAY_EXIT_S)
        shutil.rmtree(folder, ignore_errors=True)
