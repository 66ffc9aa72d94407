"""Checkpoints: a training that was killed at any moment continues as if it had not been.

A checkpoint is one safetensors file (never pickle) that holds the weights, the best weights so far,
the optimizer's state, the states of all random number generators, and in its header a JSON document
with the counters and with the identity of the training. A file is replaced as a whole: written
beside, flushed, renamed. On a CPU the resumed training ends with the same bits.

Not covered: random numbers of data-parallel workers other than the first (dropout drawn from
torch's global generator); they start anew from the seed and the step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.files import replacing
from models.training import distributed
from models.training.run import Run

FORMAT = 1
_TAKEN = (
    "{}: holds the checkpoint of an earlier training: resume it (--resume) or name another folder"
)
COUNTERS = (
    "loss_examples", "order_state", "step", "scores", "losses", "best_step", "examples",
    "training_s", "validation_s", "over",
)  # fmt: skip


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often; `identity` says what is trained on what (JSON-ready, nested).

    The loop adds its own configuration and the examples to the identity. Saved after each round
    and when `every_s` seconds have passed since the last save.
    """

    file: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    every_s: float = 30.0


class Saver:
    """Writes the checkpoints of one run; does nothing without a Checkpointing."""

    def __init__(self, to: Checkpointing | None, identity: Mapping[str, Any]) -> None:
        self._to, self._identity = to, identity
        self._saved_at = time.monotonic()

    def save(self, run: Run, always: bool = False) -> None:
        """Save if it is due or `always`."""
        if self._to is None or not distributed.is_main():
            return
        if not always and time.monotonic() - self._saved_at < self._to.every_s:
            return
        write(self._to.file, *_contents(run), self._identity)
        self._saved_at = time.monotonic()


def open_or_resume(to: Checkpointing | None, run: Run, identity: Mapping[str, Any]) -> Saver:
    """The saver of a run, which continues from the checkpoint where it may.

    CheckpointError: the file is there and `resume` was not asked for, cannot be read, or belongs to
    another training.
    """
    if to is None:
        return Saver(None, {})
    identity = json.loads(json.dumps({**to.identity, **identity}))
    if to.file.exists():
        if not to.resume:
            raise CheckpointError(_TAKEN.format(to.file))
        tensors, counters = read(to.file, identity)
        try:
            _restore(run, tensors, counters)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{to.file}: does not fit this model ({error}): start anew in another folder"
            ) from error
    return Saver(to, identity)


def write(
    file: Path,
    tensors: Mapping[str, Tensor],
    counters: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Replace `file` by a checkpoint in one atomic step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    document = {
        "format": FORMAT,
        "identity": identity,
        "counters": counters,
        "checksum": _checksum(own, counters, identity),
    }
    with replacing(file, durable=True, mode=0o600) as temporary:
        save_file(own, temporary, {"document": json.dumps(document)})


def read(file: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and counters of a whole, undamaged checkpoint of the training `identity`."""
    try:
        with safe_open(file, "pt") as opened:
            document = json.loads((opened.metadata() or {})["document"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file}: is no whole checkpoint ({error}): truncated or damaged; delete it and start "
            "anew"
        ) from error
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: has format {document.get('format')}, this code reads {FORMAT}: start anew"
        )
    sums = _checksum(tensors, document["counters"], document["identity"])
    if document["checksum"] != sums:
        raise CheckpointError(f"{file}: its checksum does not match: damaged; start anew")
    differing = differences(document["identity"], identity)
    if differing:
        raise CheckpointError(
            f"{file}: belongs to another training: {'; '.join(differing)}. Use the same settings "
            "or another folder"
        )
    return tensors, document["counters"]


def differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Where two nested documents differ, as "key: checkpoint a, now b"."""
    if isinstance(then, dict) and isinstance(now, dict):
        found = []
        for key in sorted(then.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            found += differences(then.get(key), now.get(key), inner)
        return found
    return [] if then == now else [f"{name}: checkpoint {then!r}, now {now!r}"]


def _contents(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"model/{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in (run.best or {}).items()}
    scalars: list[list[Any]] = []
    for part, state in enumerate(run.optimizer.state()):
        for number, values in state.items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{part}/{number}/{key}"] = value
                else:
                    scalars.append([part, number, key, value])
    tensors["loss_sum"] = run.loss_sum
    tensors["rng/loop"] = run.generator.get_state()
    tensors["rng/torch"] = torch.get_rng_state()
    device = next(run.model.parameters()).device
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    counters = {name: getattr(run, name) for name in COUNTERS}
    return tensors, {**counters, "optimizer_scalars": scalars}


def _restore(run: Run, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    run.model.load_state_dict(under("model/"))
    device = next(run.model.parameters()).device
    run.best = {k: v.to(device) for k, v in under("best/").items()} or None
    states: list[dict[int, dict[str, Any]]] = [{} for _ in run.optimizer.parts]
    for name, value in under("optimizer/").items():
        part, number, key = name.split("/")
        states[int(part)].setdefault(int(number), {})[key] = value
    for part, number, key, value in counters["optimizer_scalars"]:
        states[part].setdefault(number, {})[key] = value
    run.optimizer.load_state(states)
    for name in COUNTERS:
        setattr(run, name, counters[name])
    run.loss_sum.copy_(tensors["loss_sum"])
    run.rng.bit_generator.state = run.order_state
    run.generator.set_state(tensors["rng/loop"])
    if distributed.is_main():
        torch.set_rng_state(tensors["rng/torch"])
        if "rng/cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng/cuda"], device)
    else:
        torch.manual_seed(distributed.rank() + run.step)


def _checksum(
    tensors: Mapping[str, Tensor], counters: Mapping[str, Any], identity: Mapping[str, Any]
) -> str:
    """xxh3-128 over everything: guards against damage, not against an attacker."""
    digest = xxhash.xxh3_128(json.dumps([counters, identity], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of trainings with several phases: one file per model and phase."""

    folder: Path
    resume: bool = False

    def phase(self, model: str, phase: str, identity: Mapping[str, Any]) -> Checkpointing:
        file = self.folder / f"{model}-{phase}.safetensors"
        return Checkpointing(file, identity, self.resume)

    def claim(self, models: Sequence[str]) -> None:
        """CheckpointError if a model has checkpoints here and `resume` was not asked for."""
        for model in models:
            for file in sorted(self.folder.glob(f"{model}-*.safetensors")):
                if not self.resume:
                    raise CheckpointError(_TAKEN.format(file))
