"""What is measured of a model on prepared data, and the baselines beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from models.data.sequences import Split
from models.data.tables import FieldTable
from models.training.baselines.scorers import FITS
from models.training.prepared import sequence_evaluation, tables
from models.training.prepared.sequence_evaluation import Scorer
from models.training.results import Figures

Result = TypeVar("Result")

ONE_HOT = "one-hot LR"
ONE_HOT_ROWS = 2_000_000  # of the training part that the baseline is fitted on
BLOCKS = 1000  # of test rows, which the interval draws where rows have no users
EASE_ITEMS = 15_000  # largest catalogue that EASE is fitted on: 2 GB, a minute on one core


def timed(compute: Callable[[], Result]) -> tuple[Result, float]:
    """What `compute` gives and the seconds that it takes."""
    started = time.perf_counter()
    return compute(), time.perf_counter() - started


def one_hot(table: FieldTable, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Probabilities float64[n, T] of one-hot logistic regression for test rows, and a note."""
    note = "one regression per task on all categorical fields"
    fitted = table.rows("train")
    if len(fitted) > ONE_HOT_ROWS:
        chosen = np.random.default_rng(0).choice(fitted, ONE_HOT_ROWS, replace=False)
        keep = np.sort(np.concatenate([chosen, rows]))
        table, rows = table.take(keep), np.searchsorted(keep, rows)
        note += f", {ONE_HOT_ROWS:,} random rows of {len(fitted):,}"
    return tables.one_hot_scores(table, rows), note


def with_units(table: FieldTable) -> FieldTable:
    """The table; without users, blocks of rows in their place, for the interval to draw."""
    if len(np.unique(table.user[table.rows("test")])) > 1:
        return table
    return replace(table, user=(np.arange(len(table)) % BLOCKS).astype(np.int32))


def ranking_figures(table: FieldTable, rows: np.ndarray, scores: np.ndarray) -> Figures:
    """Metrics that are defined, of probabilities float[n, T] of the rows int[n].

    Without users, values are of blocks of rows, and there is no AUC within users.
    """
    measured = with_units(table)
    found = tables.evaluation_of(measured, rows, scores)
    metrics = {
        name: value
        for name, value in found.metrics.items()
        if np.isfinite(value) and (measured is table or not name.endswith(("gauc", "uauc")))
    }
    return Figures(metrics, {k: v for k, v in found.per_unit.items() if k in metrics})


def counting_scorers(split: Split) -> tuple[Mapping[str, Callable[[], Scorer]], str]:
    """The baselines that count, by name, each fitted when it is called; and why EASE is not among
    them, empty where it is."""
    scorers = {name: partial(sequence_evaluation.counting_scorer, split, name) for name in FITS}
    num_items = split.sequences.num_items
    if num_items <= EASE_ITEMS:
        return scorers, ""
    del scorers["ease"]
    return scorers, (
        f"ease: left out, it inverts a dense matrix of items x items: {num_items:,} items are "
        f"more than {EASE_ITEMS:,}"
    )
