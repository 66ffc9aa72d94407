"""How a row of the retrieval benchmark is measured, by the kind of its table, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.research import item_pairs, pair_baselines
from models.research.item_pairs import PairTraining, user_values
from models.research.retrieval_run import EPOCH_TIMED, Outcome, Run, scorer_of
from models.research.retrieval_tables import Recipe
from models.retrieval.ssl_item_to_item import SSLItemToItem, SSLItemToItemConfig, attribute_fields
from models.training.metrics import top_k
from models.training.prepared import sequence_evaluation as ev
from models.training.prepared.sequences import (
    SequenceTraining,
    build_model,
    item_table,
    model_history,
    train,
)
from models.training.results import Figures, flops_per_row, parameter_counts

LIST_LENGTH = 200  # of the lists that latencies are of
COSTED_ROWS = 64  # that floating-point operations are counted on
TUNED_ON = 2_000  # validation cases, at most, that a baseline's settings are chosen on


def of_sequences(run: Run) -> list[Outcome]:
    """Any row of a table of user cases, measured on every set of them."""
    if run.recipe.source == "union":
        return of_union(run)
    return of_model(run) if run.is_learned else of_counting(run)


def of_union(run: Run) -> list[Outcome]:
    """The lists of other rows, merged."""
    started = time.perf_counter()
    split = run.data.split
    parts = [run.load_lists(name) for name in run.recipe.settings["of"]]
    lists = ev.union_of_lists(parts, max(ev.CUTOFFS))
    seconds = time.perf_counter() - started
    found = ev.evaluate_lists(split, split.test, lists, ev.CUTOFFS)
    return [Outcome(found.figures, seconds, lists=found.lists)]


def of_counting(run: Run) -> list[Outcome]:
    """Fit on the first split (all have the same training part), measure on every one."""
    split, metric = run.data.split, run.table.primary
    started = time.perf_counter()
    drawn = np.random.default_rng(0).permutation(len(split.valid))[:TUNED_ON]
    cases = split.valid.take(np.sort(drawn))
    scorer, chosen, note = best_of(
        run.recipe,
        partial(scorer_of(run.table, run.recipe), split),
        lambda scorer: ev.mean_metric(split, cases, scorer, metric),
    )
    seconds = time.perf_counter() - started
    validation = {metric: ev.mean_metric(split, split.valid, scorer, metric)}
    outcomes = []
    for suffix, part in run.data.splits.items():
        found = ev.evaluate(part, part.test, scorer)
        outcomes.append(
            Outcome(found.figures, seconds, note, suffix, found.lists,
                    validation=validation, chosen=chosen)
        )  # fmt: skip
    return outcomes


def best_of(
    recipe: Recipe, fit: Callable[..., Any], validate: Callable[[Any], float]
) -> tuple[Any, dict[str, Any], str]:
    """The scorer with the best validation of the recipe's candidates (the first of equal ones),
    what it took of the grid, and a note on it. A recipe without a grid is fitted as it is."""
    if not recipe.grid:
        return fit(**recipe.settings), {}, ""
    best, scorer, chosen = -np.inf, None, {}
    for candidate in recipe.candidates:
        fitted = fit(**recipe.settings, **candidate)
        if (value := validate(fitted)) > best:
            best, scorer, chosen = value, fitted, candidate
    settings = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    return scorer, chosen, f"{settings}: the best of {len(recipe.candidates)} on validation cases"


def of_model(run: Run) -> list[Outcome]:
    """Train on the first split (all have the same training part), measure on every one."""
    recipe, split = run.recipe, run.data.split
    model = build_model(recipe.source, split.sequences, run.seed, **recipe.settings)
    training = SequenceTraining(**recipe.training, seed=run.seed)
    steps = max(int(training.steps * run.budget), training.validate_every)
    report = train(model, split, replace(training, steps=steps))
    history = model_history(model)
    scorer = ev.model_scorer(model, split.sequences, history)
    note = (
        f"best step {report.best_step} of at most {steps}, validation {training.valid_metric} "
        f"{max(report.validation):.4f}"
    )
    outcomes = []
    for suffix, part in run.data.splits.items():
        found = ev.evaluate(part, part.test, scorer)
        if model.num_interests > 1:
            cosine = ev.mean_interest_cosine(model, part, part.test, history)
            found.overall["interest_cosine"] = cosine
        outcomes.append(Outcome(found.figures, report.seconds, note, suffix, found.lists))
    return outcomes


def of_pairs(run: Run) -> list[Outcome]:
    """Item-to-item retrieval: figures are means over pairs, intervals are over their users."""
    return of_pair_model(run) if run.is_learned else of_counted_pairs(run)


def of_counted_pairs(run: Run) -> list[Outcome]:
    pairs, num_items = run.data.pairs, run.data.sequences.num_items
    assert pairs is not None
    metric = run.table.primary

    def validate(scorer: pair_baselines.PairScorer) -> float:
        found = pair_baselines.evaluate(scorer, pairs, num_items, pairs.valid)
        return float(np.nanmean(found[metric]))

    started = time.perf_counter()
    scorer, chosen, note = best_of(
        run.recipe, partial(scorer_of(run.table, run.recipe), pairs, num_items), validate
    )
    seconds = time.perf_counter() - started
    found = pair_baselines.evaluate(scorer, pairs, num_items, pairs.test)
    validation = {metric: validate(scorer)}
    return [pair_outcome(run, found, seconds, note, validation=validation, chosen=chosen)]


def of_pair_model(run: Run) -> list[Outcome]:
    pairs = run.data.pairs
    assert pairs is not None
    model = build_pair_model(run)
    training = PairTraining(**run.recipe.training, seed=run.seed)
    epochs = max(round(training.epochs * run.budget), 1)
    report = item_pairs.train(model, pairs, replace(training, epochs=epochs))
    note = f"best epoch {report.best_epoch} of at most {epochs}; FLOPs and latency of a query item"
    found = item_pairs.evaluate(model, pairs, pairs.test)
    return [pair_outcome(run, found, report.seconds, note)]


def pair_outcome(
    run: Run, found: Mapping[str, np.ndarray], seconds: float, note: str, **rest: Any
) -> Outcome:
    """An outcome of per-pair values."""
    pairs = run.data.pairs
    assert pairs is not None
    note = "; ".join(part for part in (note, f"{len(pairs.test):,} test pairs") if part)
    means = {k: float(np.nanmean(v)) for k, v in found.items()}
    values = user_values(dict(found), pairs.test_user)
    return Outcome(Figures(means, values), seconds, note, **rest)


def build_pair_model(run: Run) -> SSLItemToItem:
    """A new model of the run's settings and seed."""
    sequences = run.data.sequences
    fields = attribute_fields(sequences.num_items, sequences.item_attributes or ())
    torch.manual_seed(run.seed)
    return SSLItemToItem(SSLItemToItemConfig(**run.recipe.settings), fields)


def of_epoch(run: Run) -> list[Outcome]:
    """Seconds of one epoch: as many examples as there are training events."""
    split = run.data.split
    model = build_model("ssl_two_tower", split.sequences, run.seed, **run.recipe.settings)
    training = SequenceTraining(**(EPOCH_TIMED | run.recipe.training), seed=run.seed)
    events = len(split.train_events())
    steps = max(int(events / training.batch_size * run.budget), 1)
    report = train(model, split, replace(training, steps=steps, validate_every=steps))
    seconds = events / report.examples_per_s
    return [
        Outcome(
            Figures({"epoch_s": seconds, "examples_per_s": report.examples_per_s}, {}),
            report.seconds,
            f"{split.sequences.num_items:,} items, {events:,} events, {steps} steps timed",
        )
    ]


@dataclass(frozen=True)
class Cost:
    """A model's sizes, and what makes one list of LIST_LENGTH: for a user, or for a query item."""

    parameters: int
    dense_parameters: int
    flops_per_row: float
    one_list: Callable[[], Any]


def user_cost(run: Run) -> Cost:
    """Of a model that makes lists for users."""
    split, recipe = run.data.split, run.recipe
    model = build_model(recipe.source, split.sequences, run.seed, **recipe.settings).eval()
    model.load_items(item_table(split))
    history = model_history(model)
    users = ev.case_batch(split.sequences, split.test.take(slice(COSTED_ROWS)), history)
    scorer = ev.model_scorer(model, split.sequences, history)
    return Cost(
        *parameter_counts(model),
        flops_per_row(model.encode_users, users, rows=len(users)),
        partial(ev.ranked_lists, split, split.test.take(slice(1)), scorer, LIST_LENGTH),
    )


def pair_cost(run: Run) -> Cost:
    """Of a model that makes lists for items."""
    assert run.data.pairs is not None
    model = build_pair_model(run)
    items = model.vectors("item")
    queries = torch.from_numpy(run.data.pairs.test[:COSTED_ROWS, 0].astype(np.int64))

    def encode(rows: Tensor) -> Tensor:
        return functional.normalize(model.query_mlp(model.item_fields(rows).flatten(1)), dim=1)

    def one_list() -> np.ndarray:
        with torch.no_grad():
            scores = encode(queries[:1]) @ items.T
        return top_k(scores.numpy(), LIST_LENGTH, [queries[:1].numpy()])

    return Cost(*parameter_counts(model), flops_per_row(encode, queries), one_list)
