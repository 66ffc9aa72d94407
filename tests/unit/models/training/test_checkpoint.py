"""A killed training continues as if nothing had happened; a wrong checkpoint is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from models.training import checkpoint
from models.training.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    Checkpointing,
    differences,
    read,
    write,
)
from models.training.loop import fit
from tests.unit.models.training.small_training import (
    CONFIG,
    EXAMPLES,
    IDENTITY,
    facts,
    loss_of,
    quality,
    small,
    train,
)

PROGRAM = [sys.executable, "-m", "tests.unit.models.training.small_training"]


class Killed(Exception):
    pass


def _killed_after(
    steps: int, file: Path, monkeypatch: pytest.MonkeyPatch, config: Any = CONFIG
) -> None:
    """A training that dies right after its checkpoint number `steps`."""
    real, written = checkpoint.write, 0

    def counting(*arguments: Any) -> None:
        nonlocal written
        real(*arguments)
        written += 1
        if written == steps:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", counting)
        with pytest.raises(Killed):
            train(file, config=config)


@pytest.mark.parametrize("steps", [1, 3, 8, 9, 16, 31, 32])
def test_resuming_after_any_step_gives_the_same_bits(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.safetensors"
    _killed_after(steps, file, monkeypatch)
    assert facts(*train(file, resume=True)) == facts(*train(None))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adagrad"},
        {"optimizer": "sgd"},
        {"sparse_embeddings": True},
        {"precision": "bf16"},
        {"steps": 27, "validate_every": 5},
        {"clip_norm": 0.1},
    ],
)
def test_so_it_does_with_other_settings(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, config = tmp_path / "run.safetensors", replace(CONFIG, **changes)
    _killed_after(13, file, monkeypatch, config)
    assert facts(*train(file, resume=True, config=config)) == facts(*train(None, config=config))


def test_a_training_that_was_over_is_not_trained_again(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    first = train(file)
    model = small()

    def never(*_: object) -> Tensor:
        raise AssertionError("trained again")

    report = fit(
        model, never, EXAMPLES, CONFIG, checkpoint=Checkpointing(file, IDENTITY, resume=True)
    )
    assert facts(model, report) == facts(*first)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program; whatever still runs in the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*PROGRAM, *arguments], stdout=subprocess.PIPE, env=environment, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_kill_9_in_the_middle_and_resume_gives_the_same_last_digit(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    file = tmp_path / "run.safetensors"
    process = started(str(file))
    assert process.stdout is not None
    for _ in range(10):
        assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with safe_open(file, "pt") as opened:
        step = json.loads(opened.metadata()["document"])["counters"]["step"]
    assert 10 <= step < 96, "the training was over before it was killed"
    both = [started(str(file), "resume"), started(str(tmp_path / "whole.safetensors"))]
    resumed, whole = (json.loads(p.communicate()[0].splitlines()[-1]) for p in both)
    assert resumed == whole
    assert whole["steps"] == 96


def test_a_write_that_dies_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.safetensors"
    write(file, {"a": torch.ones(2)}, {"step": 1}, IDENTITY)

    def broken(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a fi")
        raise Killed

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(Killed):
        write(file, {"a": torch.zeros(2)}, {"step": 2}, IDENTITY)
    tensors, counters = read(file, IDENTITY)
    assert counters == {"step": 1}
    assert torch.equal(tensors["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named(keep: float, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(file)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match=r"run\.safetensors: is no whole checkpoint"):
        train(file, resume=True)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(file)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"run\.safetensors: its checksum does not match"):
        train(file, resume=True)


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    checkpoint.save_file({"a": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"run\.safetensors: is no whole checkpoint"):
        train(file, resume=True)


def test_another_training_is_refused_with_the_difference(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(file)
    with pytest.raises(CheckpointError, match=r"loop\.learning_rate: checkpoint 0\.05, now 0\.1"):
        train(file, resume=True, config=replace(CONFIG, learning_rate=0.1))
    model = small()
    to = Checkpointing(file, {**IDENTITY, "data": "other"}, resume=True)
    with pytest.raises(CheckpointError, match="data: checkpoint 'drawn', now 'other'"):
        fit(model, loss_of(model), EXAMPLES, CONFIG, lambda: quality(model), checkpoint=to)
    to = Checkpointing(file, IDENTITY, resume=True)
    with pytest.raises(CheckpointError, match=r"examples\.count: checkpoint 60, now 59"):
        fit(model, loss_of(model), EXAMPLES[1:], CONFIG, lambda: quality(model), checkpoint=to)
    wider = small(width=7)  # the identity does not say so
    with pytest.raises(CheckpointError, match="does not fit this model"):
        fit(wider, loss_of(wider), EXAMPLES, CONFIG, lambda: quality(wider), checkpoint=to)


def test_differences_name_nested_keys_on_either_side() -> None:
    then = {"a": 1, "b": {"c": 2, "d": [3]}, "gone": None}
    now = {"a": 1, "b": {"c": 2, "d": [4]}, "new": 5}
    assert differences(then, now) == [
        "b.d: checkpoint [3], now [4]",
        "new: checkpoint None, now 5",
    ]
    assert not differences(then, then)


def test_a_checkpoint_is_not_overwritten_unasked(tmp_path: Path) -> None:
    file = tmp_path / "small-final.safetensors"
    train(file)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=r"small-final.*--resume"):
        train(file)
    with pytest.raises(CheckpointError, match=r"small-final.*--resume"):
        CheckpointFolder(tmp_path).claim(["other", "small"])
    CheckpointFolder(tmp_path).claim(["other"])
    CheckpointFolder(tmp_path, resume=True).claim(["small"])
    assert file.read_bytes() == before
