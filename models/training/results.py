"""One measured model as a file: what every table, plot and model card is rendered from.

A benchmark saves one `ModelResult` per (table, model); `tandem evaluate --results FOLDER` reads
them all. Nothing in the documentation is typed by hand: whatever a table shall show is in here.

    <folder>/<table>/<model>.json    everything but the arrays
    <folder>/<table>/<model>.npz     per-unit values, one array per metric and seed

The unit is what the bootstrap draws, normally a test user. The values of a metric over the units
have the metric as their mean (NaN: undefined for that unit, left out), which `save` verifies;
`models.training.metrics` turns AUC, log loss and gAUC into such values.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from models.data.errors import DataError
from models.files import replace_whole, replacing

if TYPE_CHECKING:
    from torch import nn

MEAN_TOLERANCE = 1e-4  # per-unit values are stored as float32


@dataclass(frozen=True)
class Figures:
    """What was measured with one seed: metrics, and their values per test unit where they have any.

    Metrics that are not defined (NaN for every unit) are left out.
    """

    metrics: Mapping[str, float]
    per_unit: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, per_unit: Mapping[str, np.ndarray], overall: Mapping[str, float] | None = None
    ) -> Figures:
        """The means of values per unit, NaN left out, and figures of all units together."""
        known = {k: v for k, v in per_unit.items() if not np.isnan(v).all()}
        means = {k: float(np.nanmean(v)) for k, v in known.items()}
        return cls(means | {k: v for k, v in (overall or {}).items() if np.isfinite(v)}, known)


def by_seed(measured: Sequence[Figures]) -> dict[str, Any]:
    """`metrics` and `per_unit` of a result, of the figures of each seed: what all of them have."""
    metrics = [m for m in measured[0].metrics if all(m in each.metrics for each in measured)]
    units = [m for m in metrics if all(m in each.per_unit for each in measured)]
    return {
        "metrics": {m: tuple(each.metrics[m] for each in measured) for m in metrics},
        "per_unit": {m: [each.per_unit[m] for each in measured] for m in units},
    }


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What one model reached in one table. Metrics are fractions, not percent."""

    table: str  # e.g. "beauty-user-split": the models compared with each other
    data: str
    protocol: str
    model: str  # as the table shows it, e.g. "HCN-R, K=1"
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    metrics: dict[str, tuple[float, ...]]  # one value per seed, in the order of `seeds`
    per_unit: Mapping[str, Sequence[np.ndarray]]  # one array per seed; same units for a whole table
    parameters: int
    dense_parameters: int  # without embedding tables
    flops_per_row: float | None
    latency_ms: float | None  # processor time of one call (`latencies_ms`)
    train_seconds: tuple[float, ...]
    machine: str
    command: str
    notes: str = ""
    family: str = ""  # the model card this belongs to; empty: `model` itself
    unit: str = "test user"
    primary: str = ""  # metric that the table is sorted by and differences are of; empty: the first
    created: str = field(default_factory=lambda: today())
    references: tuple[str, ...] = ()  # models of the table that the difference is measured against

    def check(self) -> None:
        """DataError unless every metric has one finite value per seed that its units agree with."""
        here = f"result {self.model!r} of table {self.table!r}"
        if not self.table or not self.model or not self.seeds or not self.metrics:
            raise DataError(f"{here}: table, model, seeds and metrics must not be empty")
        if self.primary and self.primary not in self.metrics:
            raise DataError(f"{here}: the primary metric {self.primary!r} was not measured")
        if unknown := sorted(set(self.per_unit) - set(self.metrics)):
            raise DataError(f"{here}: per-unit values of {unknown[0]!r}, which is not a metric")
        sizes = set()
        for name, values in self.metrics.items():
            if len(values) != len(self.seeds) or not np.isfinite(values).all():
                raise DataError(
                    f"{here}: metric {name!r} needs {len(self.seeds)} finite values, one per seed, "
                    f"has {list(values)}"
                )
            stored = self.per_unit.get(name)
            if stored is None:
                continue
            if len(stored) != len(self.seeds):
                raise DataError(f"{here}: metric {name!r} needs one per-unit array for each seed")
            for seed, value, units in zip(self.seeds, values, stored, strict=True):
                sizes.add(len(units))
                mean = float(np.nanmean(np.asarray(units, np.float64)))
                if abs(mean - value) > MEAN_TOLERANCE * max(1.0, abs(value)):
                    raise DataError(
                        f"{here}: metric {name!r} of seed {seed} is {value}, "
                        f"but its per-unit values have mean {mean}"
                    )
        if len(sizes) > 1:
            raise DataError(f"{here}: per-unit arrays differ in length: {sorted(sizes)}")

    def save(self, folder: Path) -> Path:
        """Write the two files, each in one atomic step, the JSON last; returns its path."""
        self.check()
        path = folder / slug(self.table) / f"{slug(self.model)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and (other := json.loads(path.read_text())["model"]) != self.model:
            raise DataError(f"{path}: already holds model {other!r}: rename {self.model!r}")
        arrays: dict[str, Any] = {
            f"{name}@@{at}": np.asarray(values, np.float32)
            for name, per_seed in self.per_unit.items()
            for at, values in enumerate(per_seed)
        }
        archive = path.with_suffix(".npz")
        with (
            replacing(archive, durable=True, mode=0o644) as temporary,
            temporary.open("wb") as file,  # by its name numpy would add a suffix
        ):
            np.savez_compressed(file, **arrays)
        document = {k: v for k, v in asdict(self).items() if k != "per_unit"}
        text = json.dumps(document, indent=1, ensure_ascii=False, default=_plain) + "\n"
        replace_whole(path, text, durable=True, mode=0o644)
        return path

    @classmethod
    def load(cls, path: Path) -> ModelResult:
        """Read `<model>.json` and the arrays beside it; DataError names the file and the reason."""
        try:
            document = json.loads(path.read_text())
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
            for key in ("seeds", "train_seconds"):
                document[key] = tuple(document[key])
            single = document.pop("reference", "")  # of files that know no more than one
            references = document.get("references", [single] if single else [])
            document["references"] = tuple(references)
            document["metrics"] = {k: tuple(v) for k, v in document["metrics"].items()}
            per_unit: dict[str, list[np.ndarray]] = {}
            for key in sorted(arrays, key=lambda k: int(k.rsplit("@@", 1)[1])):
                per_unit.setdefault(key.rsplit("@@", 1)[0], []).append(arrays[key])
            result = cls(**document, per_unit=per_unit)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: is not a saved result ({error}): run its benchmark again"
            ) from error
        result.check()
        return result

    def beside(self, model: str, found: Figures, seconds: float, **facts: Any) -> ModelResult:
        """A baseline of the same table, fitted in `seconds`; `facts` where it has more to say."""
        plain: dict[str, Any] = {
            "settings": {}, "parameters": 0, "dense_parameters": 0, "flops_per_row": None,
            "latency_ms": None, "notes": "", "train_seconds": (seconds,),
        }  # fmt: skip
        return replace(self, model=model, **by_seed([found]), **plain | facts)

    def figures(self, at: int) -> Figures:
        """Those of the seed at place `at` of `seeds`."""
        metrics = {name: values[at] for name, values in self.metrics.items()}
        return Figures(metrics, {name: arrays[at] for name, arrays in self.per_unit.items()})

    @property
    def primary_metric(self) -> str:
        """The metric that this result is judged by."""
        return self.primary or next(iter(self.metrics))

    @property
    def card(self) -> str:
        """Name of the model card this result belongs to."""
        return self.family or self.model

    def mean(self, metric: str) -> float:
        """Mean over seeds; NaN when it was not measured."""
        return float(np.mean(self.metrics[metric])) if metric in self.metrics else float("nan")


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def load_all(folder: Path) -> list[ModelResult]:
    """Every result under `folder`, by table then file name; DataError when there is none."""
    paths = sorted(folder.glob("*/*.json"))
    if not paths:
        raise DataError(f"{folder}: holds no result files (<table>/<model>.json): run a benchmark")
    return [ModelResult.load(path) for path in paths]


def slug(name: str) -> str:
    """`name` as a file name: lower case letters, digits, '-' and '='."""
    return re.sub(r"[^a-z0-9=.]+", "-", name.lower()).strip("-.") or "unnamed"


def _plain(value: Any) -> Any:
    """JSON form of numpy scalars and paths in `settings`."""
    return value.item() if isinstance(value, np.generic) else str(value)


def this_machine() -> str:
    """Where and on how many threads torch computes here."""
    import torch

    return f"{platform.machine()} {platform.system()}, {torch.get_num_threads()} thread(s)"


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """(all, dense) trainable parameters; dense leaves out every `nn.Embedding(Bag)` table.

    A parameter shared by several modules counts once.
    """
    from torch import nn

    tables = {
        id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
    }
    sizes = [(p.numel(), id(p) in tables) for p in module.parameters() if p.requires_grad]
    return sum(n for n, _ in sizes), sum(n for n, table in sizes if not table)


def flops_per_row(
    module: Callable[..., Any],
    *inputs: Any,
    rows: int | None = None,
) -> float:
    """Floating-point operations of one forward pass per row: two for each multiply-add.

    Counts matrix products, convolutions and attention (`torch.utils.flop_counter`), not elementwise
    operations. `rows` is by default the first dimension of the first tensor or array given.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if rows is None:
        rows = next(len(x) for x in inputs if isinstance(x, torch.Tensor | np.ndarray))
    # Its module tracker cannot take a parameter as a module's input without gradients.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / rows


def latency_ms(call: Callable[[], Any], repeats: int = 30, warmup: int = 3) -> float:
    """Median processor time of `call()` in ms after `warmup` calls that do not count.

    On one thread it is what the call takes on a core that does nothing else, and other work on the
    machine hardly changes it.
    """
    return latencies_ms({"": call}, repeats, warmup)[""]


def latencies_ms(
    calls: Mapping[str, Callable[[], Any]], repeats: int = 30, warmup: int = 3
) -> dict[str, float]:
    """As `latency_ms`, of several calls in turn."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.process_time()
            call()
            times[name].append((time.process_time() - started) * 1e3)
    return {name: median(each) for name, each in times.items()}
