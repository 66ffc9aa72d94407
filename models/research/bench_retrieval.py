"""Trains and measures the retrieval models and saves what the tables are made of.

    python -m models.research.bench_retrieval --data-dir DATA [TABLE ...]

DATA holds the owners' files: `amazon-beauty/` (Beauty.txt, Beauty_item2attributes.json) and
`ml-1m/` (ml-1m_sasrec.txt or ml-1m.txt), gzipped or not; the simulator's tables need none. Every
run of one model with one seed is saved as soon as it ends (`models.training.results`), and what is
saved is not run again: the command may be interrupted and repeated, and two commands may run
different tables at once. Saved means: with the same settings down to every default of the model and
of the training, the same world, the same cases (by digest) and, for a union, the same lists; what
differs in any of it is run anew. A metric that the saved seeds of a row do not have is left out of
its later seeds: delete the row's file to get it. The best step, and what a counting baseline tries
(`Recipe.grid`), are chosen on validation cases; the test cases are looked at once per run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from models.research.figures import machine
from models.research.retrieval_tables import COUNTING, TABLES, Recipe, Table

if TYPE_CHECKING:
    from torch import Tensor

    from models.data.sequences import NextItemPairs, Sequences, Split
    from models.data.simulator import ShiftedSequences
    from models.retrieval.ssl_item_to_item import SSLItemToItem
    from models.training.results import ModelResult

RESULTS = Path("run/bench/models")
EPOCH_TIMED: dict[str, Any] = {"sampling": "events", "min_history": 1, "valid_cases": 100}
LIST_LENGTH = 200  # of the lists that latencies are of
COSTED_ROWS = 64  # that floating-point operations are counted on
TUNED_ON = 2_000  # validation cases, at most, that a baseline's settings are chosen on
CHOSEN = ("validation", "chosen")  # of the saved settings, what a run found and did not take
SHOWN = ("recall@10", "ndcg@10", "recall@50", "tail_recall@50", "recall@200", "epoch_s")


def main(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all by default.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    results: Annotated[Path, typer.Option(help="Folder that results are saved in.")] = RESULTS,
    model: Annotated[
        list[str] | None, typer.Option(help="Only these rows, by their name in the table.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="At most so many seeds of each row.", min=1)] = 5,
    budget: Annotated[float, typer.Option(help="Share of each row's training steps.")] = 1.0,
    again: Annotated[bool, typer.Option(help="Run also what is saved already.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.", min=1)] = 1,
) -> None:
    """Train and measure; prints a line for each run."""
    import torch

    from models.data.errors import DataError

    torch.set_num_threads(threads)
    chosen = tables or list(TABLES)
    if unknown := [name for name in chosen if name not in TABLES]:
        raise typer.BadParameter(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    rows = {recipe.model for name in chosen for recipe in TABLES[name].recipes}
    if unknown := sorted(set(model or ()) - rows):
        raise typer.BadParameter(f"no row {unknown[0]!r}; there are {', '.join(sorted(rows))}")
    started = time.perf_counter()
    try:
        for name in chosen:
            run_table(name, data_dir, results, model, seeds, budget, again)
    except DataError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    print(f"took {time.perf_counter() - started:.0f} s")


def run_table(
    name: str,
    data_dir: Path,
    results: Path,
    only: Sequence[str] | None = None,
    seeds: int = 5,
    budget: float = 1.0,
    again: bool = False,
) -> None:
    """Run what is missing of one table, the first seed of every row before the second of any."""
    table = TABLES[name]
    if budget < table.least_budget:
        print(f"{name}: left out of runs with less than {table.least_budget:.0%} of the steps")
        return
    data = load(table, data_dir)
    recipes = [recipe for recipe in table.recipes if not only or recipe.model in only]
    for turn in range(seeds):
        for recipe in recipes:
            if turn >= len(recipe.seeds):
                continue
            run = Run(name, table, recipe, recipe.seeds[turn], budget, results, data)
            if again or not run.saved():
                run.execute()
            else:
                run.relabel()
    first = [Run(name, table, r, r.seeds[0], budget, results, data) for r in recipes]
    save_costs([run for run in first if run.is_learned])


@dataclass(frozen=True)
class Cost:
    """A model's sizes, and what makes one list of LIST_LENGTH: for a user, or for a query item."""

    parameters: int
    dense_parameters: int
    flops_per_row: float
    one_list: Callable[[], Any]


def save_costs(runs: Sequence[Run]) -> None:
    """Measure what the models cost, latencies on one thread and model by model in turn; save it.

    Weights do not matter for it: models are built anew.
    """
    import torch

    from models.training.results import latencies_ms

    if not runs:
        return
    costs = {
        run.recipe.model: user_cost(run) if run.data.pairs is None else pair_cost(run)
        for run in runs
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        latency = latencies_ms({model: cost.one_list for model, cost in costs.items()})
    finally:
        torch.set_num_threads(threads)
    for run in runs:
        model = run.recipe.model
        found = {k: v for k, v in vars(costs[model]).items() if k != "one_list"}
        for suffix in run.data.suffixes:
            if (result := run.stored(suffix)) is not None:
                replace(result, latency_ms=latency[model], **found).save(run.results)


def user_cost(run: Run) -> Cost:
    """Of a model that makes lists for users."""
    from models.training.results import flops_per_row, parameter_counts
    from models.training.sequence_evaluation import case_batch, model_scorer, ranked_lists
    from models.training.sequences import build_model, model_history

    split, recipe = run.data.split, run.recipe
    model = build_model(recipe.source, split.sequences, run.seed, **recipe.settings).eval()
    history = model_history(model)
    users = case_batch(split.sequences, split.test.take(slice(COSTED_ROWS)), history)
    scorer = model_scorer(model, split.sequences, history)
    return Cost(
        *parameter_counts(model),
        flops_per_row(model.encode_users, users, rows=len(users)),
        partial(ranked_lists, split, split.test.take(slice(1)), scorer, LIST_LENGTH),
    )


def pair_cost(run: Run) -> Cost:
    """Of a model that makes lists for items."""
    import torch
    from torch.nn import functional

    from models.training.metrics import top_k
    from models.training.results import flops_per_row, parameter_counts

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


@dataclass(frozen=True)
class Data:
    """What a table trains on and asks about."""

    sequences: Sequences
    splits: Mapping[str, Split]  # by suffix of the table they fill; none for pairs
    pairs: NextItemPairs | None = None
    world: Mapping[str, Any] = field(default_factory=dict)  # of the simulator, all knobs

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the names of the tables that are filled."""
        return tuple(self.splits) or ("",)

    @property
    def split(self) -> Split:
        """The first split: all have the same training part."""
        return next(iter(self.splits.values()))

    def digests(self, suffix: str) -> dict[str, str]:
        """What the figures depend on, by part: events, training part, validation and test cases."""
        s = self.sequences
        found = {"events": digest(s.offsets, s.items), "attributes": digest(s.item_attributes)}
        if self.pairs is not None:
            p = self.pairs
            return found | {
                "train": digest(p.train, p.train_user),
                "valid": digest(p.valid, p.valid_user),
                "test": digest(p.test, p.test_user),
            }
        split = self.splits[suffix]
        return found | {
            "train": digest(split.train_start, split.train_end),
            "valid": digest(*asdict(split.valid).values()),
            "test": digest(*asdict(split.test).values(), split.filter_seen),
        }


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that differ when any array (by type and shape too) or value does."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()[:16]


def load(table: Table, data_dir: Path) -> Data:
    """The table's data, split."""
    from models.data.readers import amazon_beauty, movielens_1m_sequences
    from models.data.sequences import last_fifth, leave_one_out, next_item_pairs, user_split

    if table.data == "simulator":
        made, world = simulated(table)
        suffixes = {"-iid": "iid", "-ood": "ood"} if table.kind == "shift" else {"": "iid"}
        return Data(
            made.sequences,
            {suffix: made.split(test) for suffix, test in suffixes.items()},
            world=world,
        )
    readers = {"amazon-beauty": amazon_beauty.read, "ml-1m": movielens_1m_sequences.read}
    sequences = readers[table.data](data_dir / table.data)
    if table.kind == "pairs":
        return Data(sequences, {}, next_item_pairs(sequences))
    splits: dict[str, Callable[..., Split]] = {
        "user-split": user_split,
        "leave-one-out": leave_one_out,
        "last-fifth": last_fifth,
    }
    return Data(sequences, {"": splits[table.protocol](sequences)})


def simulated(table: Table) -> tuple[ShiftedSequences, dict[str, Any]]:
    """What the users of the table's world did, and every knob of the world and its users."""
    from models.data import simulator

    config = simulator.WorldConfig(**table.world)
    users = defaults(simulator.sequences) | table.users
    made = simulator.sequences(simulator.build_world(config), **users)
    return made, asdict(config) | users


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a function need not be given, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@dataclass(frozen=True)
class Outcome:
    """What one run has measured; `suffix` says which of a run's tables it belongs to."""

    metrics: Mapping[str, float]
    per_unit: Mapping[str, np.ndarray]
    seconds: float
    note: str = ""
    suffix: str = ""
    lists: np.ndarray | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)  # of the recipe's grid


@dataclass(frozen=True)
class Run:
    """One model with one seed: from the recipe to the saved result."""

    name: str
    table: Table
    recipe: Recipe
    seed: int
    budget: float
    results: Path
    data: Data

    def execute(self) -> None:
        """Train, measure, save, print a line per table filled."""
        measure: dict[str, Callable[[Run], list[Outcome]]]
        measure = {"pairs": of_pairs, "epoch-time": of_epoch}
        for outcome in measure.get(self.table.kind, of_sequences)(self):
            self.merged(outcome).save(self.results)
            if outcome.lists is not None and self.seed == self.recipe.seeds[0]:
                self.save_lists(outcome.lists)
            figures = [f"{m} {outcome.metrics[m]:.4f}" for m in SHOWN if m in outcome.metrics]
            print(
                f"{self.name + outcome.suffix}  {self.recipe.model}  seed {self.seed}  "
                f"{'  '.join(figures)}  {outcome.note}  {outcome.seconds:.0f} s",
                flush=True,
            )

    @property
    def is_learned(self) -> bool:
        """Whether it is a trained model."""
        return self.recipe.source not in COUNTING | {"union"}

    def settings(self, suffix: str = "") -> dict[str, Any]:
        """What is saved beside the figures; a result with other settings is replaced."""
        recipe = self.recipe
        out: dict[str, Any] = {"source": recipe.source}
        if recipe.source == "union":
            out["of"] = {name: self.digest_of_lists(name) for name in recipe.settings["of"]}
        else:
            out["model"] = resolved_model(self.table, recipe, self.data.sequences)
        if recipe.grid:
            out["grid"] = recipe.grid
        if self.is_learned:
            out["training"] = resolved_training(self.table, recipe)
            out["budget"] = self.budget
        if recipe.deterministic:
            out["deterministic"] = True
        if self.data.world:
            out["world"] = dict(self.data.world)
        if self.table.kind == "epoch-time":
            out["threads"] = torch_threads()
        if suffix == "-ood":
            out["drop_from"] = f"{self.name}-iid"
        out["digests"] = self.data.digests(suffix)
        return json.loads(json.dumps(out))  # as it is read back

    @property
    def protocol(self) -> str:
        """How it was measured, with the world's knobs and how they were chosen."""
        if not self.data.world:
            return self.table.protocol
        knobs = ", ".join(f"{k} {v:,}" for k, v in self.data.world.items())
        return f"{self.table.protocol}; world: {knobs}; {self.table.chosen}"

    def saved(self) -> bool:
        """Whether this seed's figures are there, in every table that the run fills."""
        found = [self.stored(suffix) for suffix in self.data.suffixes]
        return all(result is not None and self.seed in result.seeds for result in found)

    def relabel(self) -> None:
        """Give saved results the present references and family, which no figure depends on."""
        wanted = self.table.references_of(self.recipe)
        for suffix in self.data.suffixes:
            found = self.stored(suffix)
            if found is not None and (found.references, found.family) != (
                wanted,
                self.recipe.family,
            ):
                family = self.recipe.family
                replace(found, reference="", references=wanted, family=family).save(self.results)

    def stored(self, suffix: str) -> ModelResult | None:
        """The saved result of the same settings, if any."""
        from models.training.results import ModelResult, slug

        path = self.results / slug(self.name + suffix) / f"{slug(self.recipe.model)}.json"
        if not path.is_file():
            return None
        found = ModelResult.load(path)
        measured = {k: v for k, v in found.settings.items() if k not in CHOSEN}
        return found if measured == self.settings(suffix) else None

    def merged(self, outcome: Outcome) -> ModelResult:
        """The saved result with this seed's figures added or replaced."""
        from models.training.results import ModelResult

        facts = machine()
        recipe = self.recipe
        new = ModelResult(
            table=self.name + outcome.suffix,
            data=self.table.data,
            protocol=self.protocol,
            model=recipe.model,
            settings=self.settings(outcome.suffix)
            | {k: dict(v) for k in CHOSEN if (v := getattr(outcome, k))},
            seeds=(self.seed,),
            metrics={k: (v,) for k, v in outcome.metrics.items()},
            per_unit={k: [v] for k, v in outcome.per_unit.items() if k in outcome.metrics},
            parameters=0,  # this and other costs: see save_costs
            dense_parameters=0,
            flops_per_row=None,
            latency_ms=None,
            train_seconds=(outcome.seconds,),
            machine=f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_average'][0]}",
            command=f"python -m models.research.bench_retrieval {self.name}",
            notes="; ".join(part for part in (recipe.notes, outcome.note) if part),
            family=recipe.family,
            references=self.table.references_of(recipe),
            primary=self.table.primary if self.table.primary in outcome.metrics else "",
            unit=self.table.unit,
        )
        old = self.stored(outcome.suffix)
        if old is None:
            return new
        keep = [i for i, seed in enumerate(old.seeds) if seed != self.seed]

        def kept(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[i] for i in keep)

        def has(metric: str) -> bool:
            return not keep or metric in old.metrics

        return replace(
            new,
            seeds=kept(old.seeds) + new.seeds,
            metrics={k: kept(old.metrics[k]) + v for k, v in new.metrics.items() if has(k)},
            per_unit={k: [*kept(old.per_unit[k]), *v] for k, v in new.per_unit.items() if has(k)},
            train_seconds=kept(old.train_seconds) + new.train_seconds,
        )

    def lists_path(self, model: str) -> Path:
        from models.training.results import slug

        return self.results / slug(self.name) / "lists" / f"{slug(model)}.npy"

    def save_lists(self, lists: np.ndarray) -> None:
        """Keep the first seed's lists, for the union of sources."""
        path = self.lists_path(self.recipe.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, lists.astype(np.int32))

    def digest_of_lists(self, model: str) -> str:
        """Of another row's lists; empty where they are missing."""
        return digest(self.load_lists(model)) if self.lists_path(model).is_file() else ""

    def load_lists(self, model: str) -> np.ndarray:
        """The lists of another row of the table."""
        from models.data.errors import DataError

        path = self.lists_path(model)
        if not path.is_file():
            raise DataError(f"{path}: {self.recipe.model!r} needs the lists of {model!r}: run it")
        return np.load(path, allow_pickle=False)


def resolved_model(table: Table, recipe: Recipe, sequences: Sequences) -> dict[str, Any]:
    """Every setting of the row's model, the defaults too, but for those of its grid."""
    from models.retrieval.ssl_item_to_item import SSLItemToItemConfig
    from models.training.sequences import build_config

    if recipe.source in COUNTING:
        known = defaults(scorer_of(table, recipe)) | recipe.settings
        return {k: v for k, v in known.items() if k not in recipe.grid}
    if recipe.source == "ssl_item_to_item":
        return asdict(SSLItemToItemConfig(**recipe.settings))
    return asdict(build_config(recipe.source, sequences, **recipe.settings))


def scorer_of(table: Table, recipe: Recipe) -> Callable[..., Any]:
    """What fits a counting baseline."""
    from models.research import pair_baselines
    from models.training import sequence_evaluation

    module = pair_baselines if table.kind == "pairs" else sequence_evaluation
    return getattr(module, f"{recipe.source}_scorer")


def resolved_training(table: Table, recipe: Recipe) -> dict[str, Any]:
    """Every field of the row's training, the defaults too, but for the seed."""
    from models.research.item_pairs import PairTraining
    from models.training.sequences import SequenceTraining

    if table.kind == "pairs":
        return without_seed(asdict(PairTraining(**recipe.training)))
    given = (EPOCH_TIMED if table.kind == "epoch-time" else {}) | recipe.training
    return without_seed(asdict(SequenceTraining(**given)))


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def without_seed(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k != "seed"}


def of_sequences(run: Run) -> list[Outcome]:
    """Any row of a table of user cases, measured on every set of them."""
    if run.recipe.source == "union":
        return of_union(run)
    return of_model(run) if run.is_learned else of_counting(run)


def of_union(run: Run) -> list[Outcome]:
    """The lists of other rows, merged."""
    from models.training import sequence_evaluation as ev

    started = time.perf_counter()
    split = run.data.split
    parts = [run.load_lists(name) for name in run.recipe.settings["of"]]
    lists = ev.union_of_lists(parts, max(ev.CUTOFFS))
    seconds = time.perf_counter() - started
    found = ev.evaluate_lists(split, split.test, lists, ev.CUTOFFS)
    return [Outcome(found.means(), found.per_case, seconds, lists=found.lists)]


def of_counting(run: Run) -> list[Outcome]:
    """Fit on the first split (all have the same training part), measure on every one."""
    from models.training import sequence_evaluation as ev

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
            Outcome(found.means(), found.per_case, seconds, note, suffix, found.lists,
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
    from models.training.sequence_evaluation import evaluate, mean_interest_cosine, model_scorer
    from models.training.sequences import SequenceTraining, build_model, model_history, train

    recipe, split = run.recipe, run.data.split
    model = build_model(recipe.source, split.sequences, run.seed, **recipe.settings)
    training = SequenceTraining(**recipe.training, seed=run.seed)
    steps = max(int(training.steps * run.budget), training.validate_every)
    report = train(model, split, replace(training, steps=steps))
    history = model_history(model)
    scorer = model_scorer(model, split.sequences, history)
    note = (
        f"best step {report.best_step} of at most {steps}, validation {training.valid_metric} "
        f"{max(report.validation):.4f}"
    )
    outcomes = []
    for suffix, part in run.data.splits.items():
        found = evaluate(part, part.test, scorer)
        means = found.means()
        if model.num_interests > 1:
            means["interest_cosine"] = mean_interest_cosine(model, part, part.test, history)
        outcomes.append(Outcome(means, found.per_case, report.seconds, note, suffix, found.lists))
    return outcomes


def of_pairs(run: Run) -> list[Outcome]:
    """Item-to-item retrieval: figures are means over pairs, intervals are over their users."""
    return of_pair_model(run) if run.is_learned else of_counted_pairs(run)


def of_counted_pairs(run: Run) -> list[Outcome]:
    from models.research import pair_baselines

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
    from models.research.item_pairs import PairTraining, evaluate, train

    pairs = run.data.pairs
    assert pairs is not None
    model = build_pair_model(run)
    training = PairTraining(**run.recipe.training, seed=run.seed)
    epochs = max(round(training.epochs * run.budget), 1)
    report = train(model, pairs, replace(training, epochs=epochs))
    note = f"best epoch {report.best_epoch} of at most {epochs}; FLOPs and latency of a query item"
    found = evaluate(model, pairs, pairs.test)
    return [pair_outcome(run, found, report.seconds, note)]


def pair_outcome(
    run: Run, found: Mapping[str, np.ndarray], seconds: float, note: str, **rest: Any
) -> Outcome:
    """An outcome of per-pair values."""
    from models.research.item_pairs import user_values

    pairs = run.data.pairs
    assert pairs is not None
    note = "; ".join(part for part in (note, f"{len(pairs.test):,} test pairs") if part)
    return Outcome(
        {k: float(np.nanmean(v)) for k, v in found.items()},
        user_values(dict(found), pairs.test_user),
        seconds,
        note,
        **rest,
    )


def build_pair_model(run: Run) -> SSLItemToItem:
    """A new model of the run's settings and seed."""
    import torch

    from models.retrieval.ssl_item_to_item import (
        SSLItemToItem,
        SSLItemToItemConfig,
        attribute_fields,
    )

    sequences = run.data.sequences
    fields = attribute_fields(sequences.num_items, sequences.item_attributes or ())
    torch.manual_seed(run.seed)
    return SSLItemToItem(SSLItemToItemConfig(**run.recipe.settings), fields)


def of_epoch(run: Run) -> list[Outcome]:
    """Seconds of one epoch: as many examples as there are training events."""
    from models.training.sequences import SequenceTraining, build_model, train

    split = run.data.split
    model = build_model("ssl_two_tower", split.sequences, run.seed, **run.recipe.settings)
    training = SequenceTraining(**(EPOCH_TIMED | run.recipe.training), seed=run.seed)
    events = len(split.train_events())
    steps = max(int(events / training.batch_size * run.budget), 1)
    report = train(model, split, replace(training, steps=steps, validate_every=steps))
    seconds = events / report.examples_per_s
    return [
        Outcome(
            {"epoch_s": seconds, "examples_per_s": report.examples_per_s},
            {},
            report.seconds,
            f"{split.sequences.num_items:,} items, {events:,} events, {steps} steps timed",
        )
    ]


if __name__ == "__main__":
    typer.run(main)
