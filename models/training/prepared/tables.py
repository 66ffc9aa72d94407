"""Trains and measures ranking models on a `FieldTable`: early stopping on validation, test once.

A `RankerSpec` says everything of a training but its seed. The test part is read by `evaluate`
alone. Tables live in memory as tensors; a batch is a handful of gathers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xxhash
from rich.console import Console
from scipy.sparse import csr_matrix
from torch import Tensor

from models.data.errors import DataError
from models.data.tables import TRAIN, FieldTable
from models.layers.embedding_tables import EmbeddingOptions, Features
from models.ranking.model import TableBatch, TableRanker
from models.registry import kind_of
from models.schema.inputs import FeatureSchema, Input, Side
from models.training import distributed
from models.training.checkpoint import Checkpointing
from models.training.loop import LoopConfig, LoopReport, fit
from models.training.metrics import auc, task_metrics
from models.training.results import Figures

EVALUATION_ROWS = 4096


def schema_of(table: FieldTable) -> FeatureSchema:
    """What of a table its models must know. What is of the request is of the user's side, too;
    numbers have no side of their own: they are the row's. A history is read as its mean as well."""
    sizes = {f.name: f.vocabulary for f in table.fields}
    inputs = [
        *(Input(name=f.name, side=_side(f.side), size=f.vocabulary) for f in table.fields),
        *(Input(name=name, kind="number") for name in table.dense_names),
        *(
            Input(name=name, kind="bag", side=_side(bag.side), size=bag.vocabulary)
            for name, bag in table.bags.items()
        ),
    ]
    for name, each in table.history.items():
        size = sizes[each.of]
        inputs.append(Input(name=name, kind="history", side="user", size=size, table=each.of))
        inputs.append(Input(name=f"{name} (mean)", kind="pool", side="user", of=name))
    return FeatureSchema(tuple(inputs), table.tasks)


def _side(side: str) -> Side:
    return "row" if side == "item" else "user"


def without_unseen(table: FieldTable, history: int | None = None) -> FieldTable:
    """The table with the newest `history` items of each history and no id that was not trained.

    Every id of a field, bag or history that occurs in no training row with a known label becomes 0,
    unknown: its embedding would stay as it was drawn. A field and its histories share a vocabulary.
    What is left of a history moves together.
    """
    trained = (table.split == TRAIN) & table.known.any(axis=1)
    histories = {n: replace(h, ids=h.ids[:, :history]) for n, h in table.history.items()}
    categorical, bags = np.array(table.categorical), {}
    for column, each in enumerate(table.fields):
        of = [h for h in histories.values() if h.of == each.name]
        seen = _seen(each.vocabulary, categorical[trained, column], *(h.ids[trained] for h in of))
        categorical[:, column] = np.where(seen[categorical[:, column]], categorical[:, column], 0)
        for name, h in histories.items():
            if h.of == each.name:
                histories[name] = replace(h, ids=_left_aligned(np.where(seen[h.ids], h.ids, 0)))
    for name, bag in table.bags.items():
        seen = _seen(bag.vocabulary, bag.ids[trained])
        bags[name] = replace(bag, ids=_left_aligned(np.where(seen[bag.ids], bag.ids, 0)))
    return replace(table, categorical=categorical, bags=bags, history=histories)


def _seen(vocabulary: int, *ids: np.ndarray) -> np.ndarray:
    """bool[vocabulary]: the ids that occur."""
    seen = np.zeros(vocabulary, bool)
    for each in ids:
        seen[each] = True
    return seen


def _left_aligned(ids: np.ndarray) -> np.ndarray:
    """Ids int32[N, S], the zeros of each row moved to its end."""
    return np.take_along_axis(ids, np.argsort(ids == 0, axis=1, kind="stable"), axis=1)


def digest(table: FieldTable) -> str:
    """Hash of all that a training and its test read: two tables of the same rows have the same."""
    hashed = xxhash.xxh3_128()
    arrays = {
        "categorical": table.categorical, "dense": table.dense, "labels": table.labels,
        "known": table.known, "user": table.user, "split": table.split,
        **{f"bag {name}": bag.ids for name, bag in table.bags.items()},
        **{f"history {name}": history.ids for name, history in table.history.items()},
    }  # fmt: skip
    hashed.update(repr(schema_of(table)).encode())
    for name, array in arrays.items():
        hashed.update(f"{name} {array.dtype} {array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


class TableTensors:
    """A table as tensors on one device; dense columns are standardised by the training part.

    `history` keeps the newest so many items of every history. `mean` and `scale` float64[D] are
    those of the standardised columns.
    """

    def __init__(
        self,
        table: FieldTable,
        device: torch.device | str = "cpu",
        history: int | None = None,
    ) -> None:
        self.table, self.device, self.history = table, torch.device(device), history
        self.schema = schema_of(table)
        known = np.asarray(table.dense)[table.split == TRAIN]
        mean, scale = known.mean(0, dtype=np.float64), known.std(0, dtype=np.float64)
        self.mean, self.scale = mean, np.where(scale > 0, scale, 1.0)
        dense = (table.dense - self.mean) / self.scale
        users = [_side(f.side) == "user" for f in table.fields]
        user_bags = {name for name, bag in table.bags.items() if _side(bag.side) == "user"}
        bags = {name: self._tensor(bag.ids) for name, bag in table.bags.items()}
        nothing = self._tensor(np.zeros((len(table), 0), np.float32))
        self._inputs = TableBatch(
            Features(
                self._tensor(table.categorical[:, users]),
                nothing,
                {name: ids for name, ids in bags.items() if name in user_bags}
                | {name: self._tensor(h.ids[:, :history]) for name, h in table.history.items()},
                {},
            ),
            Features(
                self._tensor(table.categorical[:, np.logical_not(users)]),
                self._tensor(dense.astype(np.float32)),
                {name: ids for name, ids in bags.items() if name not in user_bags},
                {},
            ),
        )
        self._labels, self._known = self._tensor(table.labels), self._tensor(table.known)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of "train", "valid" or "test" of which some label is known."""
        rows = self.table.rows(split)
        return rows[self.table.known[rows].any(axis=1)]

    def batch(self, index: np.ndarray) -> TableBatch:
        """The inputs of the rows int[n]."""
        at = torch.from_numpy(np.ascontiguousarray(index, np.int64)).to(self.device)
        return TableBatch(self._inputs.users.take(at), self._inputs.rows.take(at))

    def labels(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Labels float[n, T] of the rows and bool[n, T] whether they are known."""
        at = torch.from_numpy(np.ascontiguousarray(index, np.int64)).to(self.device)
        return self._labels[at], self._known[at]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)


@dataclass(frozen=True)
class RankerSpec:
    """A training but for its seed; JSON-ready but for the loop."""

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    l2: float = 0.0
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(10, 2048, 1e-3, patience=1))

    def document(self) -> dict[str, Any]:
        """Everything, as JSON; settings that are not set appear with their defaults."""
        settings = kind_of(self.model, "ranking").config(**self.settings)
        return asdict(self) | {"settings": asdict(settings)}


def build(
    schema: FeatureSchema, spec: RankerSpec, seed: int, device: torch.device | str = "cpu"
) -> TableRanker:
    """A new model, its weights drawn from `seed`, torch's own random numbers left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = kind_of(spec.model, "ranking")
        model = kind.table_ranker(schema, spec.settings, spec.options, spec.l2)
    return model.to(device)


def train(
    data: TableTensors,
    spec: RankerSpec,
    seed: int,
    console: Console | None = None,
    checkpoint: Checkpointing | None = None,
) -> tuple[TableRanker, LoopReport]:
    """Train until validation (mean AUC of the tasks) no longer grows; the best weights are kept."""
    model = build(data.schema, spec, seed, data.device)
    valid = data.rows("valid")
    labels, known = (t.cpu().numpy() for t in data.labels(valid))

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        return task_loss(model, data.batch(index), *data.labels(index))

    def validate() -> float:
        scores = predict(model, data, valid)
        return mean_auc(labels, known, scores)

    loop = replace(spec.loop, seed=seed)
    report = fit(model, loss, data.rows("train"), loop, validate, console, spec.model, checkpoint)
    return model, report


def task_loss(model: TableRanker, batch: TableBatch, labels: Tensor, known: Tensor) -> Tensor:
    """The model's loss of a batch, or of a worker's share of it."""
    if distributed.world_size() == 1:
        return model.loss(batch, labels, known)
    each = model.losses(batch, labels, known)
    return (each * distributed.task_weights(known)).sum() + model.penalty()


def train_in_worker(
    table: FieldTable,
    history: int | None,
    spec: RankerSpec,
    seed: int,
    checkpoint: Checkpointing | None,
) -> tuple[TableRanker, dict[str, Any]]:
    """`train` on a worker's own device (`models.training.distributed.run`)."""
    data = TableTensors(table, distributed.worker_device(), history)
    model, report = train(data, spec, seed, checkpoint=checkpoint)
    return model, asdict(report)


def predict(model: TableRanker, data: TableTensors, index: np.ndarray) -> np.ndarray:
    """Probabilities float32[n, T] of the rows int[n]."""
    parts = [
        model.score(data.batch(index[start : start + EVALUATION_ROWS]))
        for start in range(0, len(index), EVALUATION_ROWS)
    ]
    return torch.cat(parts).cpu().numpy()


def mean_auc(labels: np.ndarray, known: np.ndarray, scores: np.ndarray) -> float:
    """Mean over tasks of the AUC over known rows; DataError where a task has one class only."""
    each = [auc(labels[k, t], scores[k, t]) for t, k in enumerate(known.T)]
    if np.isnan(each).any():
        raise DataError(
            "the validation part has rows of one class only for a task: its AUC is not defined; "
            "validate on more rows"
        )
    return float(np.mean(each))


def evaluate(model: TableRanker, data: TableTensors, split: str = "test") -> Figures:
    """AUC, gAUC (weighted and uniform), log loss and calibration of every task on a split.

    Units are users, ascending; one without a known row of a task has NaN.
    """
    rows = data.rows(split)
    return evaluation_of(data.table, rows, predict(model, data, rows))


def evaluation_of(table: FieldTable, rows: np.ndarray, scores: np.ndarray) -> Figures:
    """As `evaluate`, of probabilities float[n, T] of any origin (an oracle, a regression)."""
    return Figures(
        *task_metrics(table.tasks, table.labels[rows], table.known[rows], scores, table.user[rows])
    )


def one_hot_scores(table: FieldTable, rows: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Probabilities float64[n, T] of scikit-learn's logistic regression on the one-hot fields.

    Fitted on the known rows of the training part, a regression per task; `strength` is C. Id 0 has
    no column: an unknown value adds nothing. "newton-cg" with 1e-5 gives the AUCs of L-BFGS with
    1e-6 (within 1e-5 on ml-1m) in less than a quarter of its time.
    """
    from sklearn.linear_model import LogisticRegression

    ids = np.asarray(table.categorical)
    sizes = [field.vocabulary for field in table.fields]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    shape = (len(ids), int(sum(sizes)))
    pointer = np.arange(len(ids) + 1) * len(sizes)
    values = (ids > 0).astype(np.float64).ravel()
    matrix = csr_matrix((values, (ids + starts).ravel(), pointer), shape=shape)
    train = np.flatnonzero(table.split == TRAIN)
    scores = np.empty((len(rows), len(table.tasks)))
    for t in range(len(table.tasks)):
        fitted = train[table.known[train, t]]
        # The tolerance is one of the mean loss's gradient: a column's share of it is small.
        regression = LogisticRegression(C=strength, max_iter=1000, tol=1e-5, solver="newton-cg")
        regression.fit(matrix[fitted], table.labels[fitted, t])
        scores[:, t] = regression.predict_proba(matrix[rows])[:, 1]
    return scores
