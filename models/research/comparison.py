"""The results of a table beside each other: the gain of each model over its references, and drops.

Differences are paired over the test units, and over the seeds where both sides have several. Rows
that were not measured alike are not put in one table. Of a result's `settings` are used

    deterministic   True: no seed changes the model
    digests         by part of the data, what the figures depend on
    validation      by metric, the value on the validation cases, which BEST_COUNTING is chosen by
    budget          share of the training budget
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.data.errors import DataError
from models.training.bootstrap import (
    Interval,
    mean_interval,
    paired_interval,
    two_sample_interval,
)
from models.training.results import ModelResult

BEST_COUNTING = "best counting baseline"  # a reference: of the table's rows, by validation
TRIED = re.compile(r"\b(\d+) settings tried")
SHOWN_METRICS = 6  # columns of a table, and metrics that gains are computed in
LOWER_IS_BETTER = ("log_loss", "ece", "epoch_s")


@dataclass(frozen=True)
class Difference:
    """The gain of a model over its reference: positive is better, whatever the metric."""

    reference: str
    interval: Interval
    seeds_won: int
    seeds: int  # seeds compared one by one; 0: none can be
    seedless: bool = False  # no seed changes either side

    @property
    def seeds_text(self) -> str:
        """On how many seeds it holds."""
        if self.seedless:
            return ""
        if not self.seeds:
            return "no seed in common"
        return f"{self.seeds_won}/{self.seeds} seeds" if self.seeds > 1 else "1 seed"


@dataclass(frozen=True)
class Row:
    """One model of a table, ready to be shown."""

    result: ModelResult
    interval: Interval | None  # of the primary metric over the units (and seeds, if several)
    # By metric, the primary first: a gain over every reference; only metrics with unit values.
    differences: Mapping[str, tuple[Difference, ...]]

    @property
    def gains(self) -> tuple[Difference, ...]:
        """The gains in the table's primary metric, one for each reference."""
        return next(iter(self.differences.values()), ())

    @property
    def difference(self) -> Difference | None:
        """The gain over the first reference, which the plot shows."""
        return self.gains[0] if self.gains else None


@dataclass(frozen=True)
class ResultTable:
    """The models of one table name, best first by the primary metric."""

    name: str
    primary: str
    metrics: tuple[str, ...]  # all that any model has, primary first
    rows: tuple[Row, ...]


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value is a better one."""
    return any(part in metric for part in LOWER_IS_BETTER)


def deterministic(result: ModelResult) -> bool:
    """Whether no seed changes the model: said by the benchmark, not guessed from one seed."""
    return bool(result.settings.get("deterministic"))


def result_tables(
    results: Sequence[ModelResult], references: Mapping[str, str] | None = None
) -> list[ResultTable]:
    """The results by table name, each with its intervals.

    A model's differences are to the models that its result names (BEST_COUNTING: to the counting
    baseline with the best validation), else to `references[table]`, else to the best model of the
    table. A model that a result names but that is not there yet gives no difference; DataError if
    `references` names none or if the rows of a table were not measured alike.
    """
    names = list(dict.fromkeys(r.table for r in results))
    for table in references or {}:
        if table not in names:
            raise DataError(f"no results of table {table!r}: there are {', '.join(names)}")
    return [
        _result_table(name, [r for r in results if r.table == name], (references or {}).get(name))
        for name in names
    ]


def check_alike(results: Sequence[ModelResult]) -> None:
    """DataError, with the two rows and the difference, unless all can stand in one table."""
    first: dict[str, tuple[str, str]] = {}
    for result in results:
        for what, value in _conditions(result).items():
            model, expected = first.setdefault(what, (result.model, value))
            if value != expected:
                raise DataError(
                    f"table {result.table!r}: its rows differ in {what}: {model!r} has "
                    f"{expected}, {result.model!r} has {value}: run the outdated one again"
                )


def _conditions(result: ModelResult) -> dict[str, str]:
    """What must be the same for all rows of a table that have it."""
    sizes = sorted({len(units) for each in result.per_unit.values() for units in each})
    found = {
        "data": repr(result.data),
        "protocol": repr(TRIED.sub("settings tried", result.protocol)),
        "unit": repr(result.unit),
    }
    if sizes:
        found["number of units"] = f"{sizes[0]} units"
    if "budget" in result.settings:
        found["budget"] = str(result.settings["budget"])
    # A row for which nothing is tuned, such as an oracle's, stands beside any search budget.
    if (tried := TRIED.search(result.protocol)) is not None and int(tried[1]):
        found["settings tried"] = tried[1]
    data = result.settings.get("data")
    whole = {"data": data["digest"]} if isinstance(data, dict) and "digest" in data else {}
    digests = result.settings.get("digests", whole)
    found["the parts of the data that have a digest"] = ", ".join(sorted(digests)) or "none"
    for part, value in digests.items():
        found[f"the digest of {part}"] = str(value)
    return found


def _result_table(name: str, results: list[ModelResult], reference: str | None) -> ResultTable:
    check_alike(results)
    primaries = [r.primary_metric for r in results]
    primary = max(dict.fromkeys(primaries), key=primaries.count)
    sign = -1.0 if lower_is_better(primary) else 1.0
    measured = [r for r in results if primary in r.metrics]
    ordered = sorted(measured, key=lambda r: -sign * r.mean(primary))
    ordered += [r for r in results if primary not in r.metrics]
    by_name = {r.model: r for r in results}
    if reference is not None and reference not in by_name:
        raise DataError(
            f"table {name!r} has no model {reference!r} to compare with: there are "
            f"{', '.join(by_name)}"
        )
    metrics = tuple(dict.fromkeys([primary, *(m for r in results for m in r.metrics)]))
    rows = []
    for result in ordered:
        named = result.references or (reference or ordered[0].model,)
        gains = _differences(result, _found(named, by_name, primary), metrics[:SHOWN_METRICS])
        rows.append(Row(result, _own_interval(result, primary), gains))
    return ResultTable(name, primary, metrics, tuple(rows))


def _own_interval(result: ModelResult, metric: str) -> Interval | None:
    if metric not in result.per_unit:
        return None
    values = np.stack(result.per_unit[metric])
    return mean_interval(values, seeds=len(values) > 1 and not deterministic(result))


def _found(
    named: Sequence[str], by_name: Mapping[str, ModelResult], metric: str
) -> list[ModelResult]:
    """The results of the names that are there, each once."""
    best = best_counting(list(by_name.values()), metric)
    names = [best.model if n == BEST_COUNTING and best is not None else n for n in named]
    return [by_name[n] for n in dict.fromkeys(names) if n in by_name]


def best_counting(results: Sequence[ModelResult], metric: str) -> ModelResult | None:
    """The counting baseline with the best validation value of `metric`, None if none has one."""
    sign = -1.0 if lower_is_better(metric) else 1.0
    valued = [
        (sign * r.settings["validation"][metric], r)
        for r in results
        if deterministic(r) and metric in r.settings.get("validation", {})
    ]
    return max(valued, key=lambda each: each[0])[1] if valued else None


def _differences(
    result: ModelResult, references: Sequence[ModelResult], metrics: Sequence[str]
) -> dict[str, tuple[Difference, ...]]:
    """Gains by metric, where both sides have unit values; empty without one in the first metric."""
    found = {}
    for metric in metrics:
        gains = [difference(result, reference, metric) for reference in references]
        found[metric] = tuple(gain for gain in gains if gain is not None)
    return {m: gains for m, gains in found.items() if gains} if found[metrics[0]] else {}


def difference(result: ModelResult, reference: ModelResult, metric: str) -> Difference | None:
    """Paired gain over the reference; None for itself or where a side has no per-unit values."""
    sides = (result, reference)
    if result.model == reference.model or not all(metric in r.per_unit for r in sides):
        return None
    check_alike(sides)
    sign = -1.0 if lower_is_better(metric) else 1.0
    common = common_seeds(sides)
    own, other = (sign * _of_seeds(r, metric, common) for r in sides)
    won = sum(sign * (_at(result, metric, s) - _at(reference, metric, s)) > 0 for s in common)
    return Difference(
        reference.model,
        paired_interval(own, other, seeds=len(common) > 1),
        int(won),
        len(common),
        all(map(deterministic, sides)),
    )


def common_seeds(results: Sequence[ModelResult]) -> list[int]:
    """The seeds that every result has; one that no seed changes has them all."""
    drawn = [r for r in results if not deterministic(r)] or list(results[:1])
    return [s for s in drawn[0].seeds if all(s in r.seeds for r in drawn)]


def _of_seeds(result: ModelResult, metric: str, seeds: Sequence[int]) -> np.ndarray:
    """float64[S, U]: unit values of those seeds, in their order; of all seeds if none is given."""
    values = np.stack(result.per_unit[metric]).astype(np.float64)
    if deterministic(result):
        return np.repeat(values[:1], max(len(seeds), 1), axis=0)
    return values[[result.seeds.index(s) for s in seeds]] if seeds else values


def _at(result: ModelResult, metric: str, seed: int) -> float:
    values = result.metrics[metric]
    return values[0] if deterministic(result) else values[result.seeds.index(seed)]


# Drops between two test sets


@dataclass(frozen=True)
class Drop:
    """How much of a metric a model loses from one test set to another with other users."""

    model: str
    interval: Interval
    seeds: int
    smaller: tuple[Difference, ...]  # by how much less than each reference; positive is better


def drops(unlike: ResultTable, like: ResultTable) -> list[Drop]:
    """Of every model of both tables, in the primary metric of `unlike`, the smallest first.

    Users are drawn independently on the two sides and alike for both models of a comparison.
    """
    metric = unlike.primary
    likes, unlikes = (
        {r.result.model: r.result for r in table.rows if metric in r.result.per_unit}
        for table in (like, unlike)
    )
    found = []
    for name in unlikes:
        if name not in likes or not (seeds := common_seeds([likes[name], unlikes[name]])):
            continue
        own = likes[name], unlikes[name]
        sides = [_of_seeds(side, metric, seeds) for side in own]
        named = _found(unlikes[name].references, unlikes, metric)
        others = [(likes[r.model], r) for r in named if r.model in likes and r.model != name]
        smaller = [gain for other in others if (gain := _smaller(own, other, metric)) is not None]
        interval = two_sample_interval(sides[0], sides[1], seeds=len(seeds) > 1)
        found.append(Drop(name, interval, len(seeds), tuple(smaller)))
    return sorted(found, key=lambda drop: drop.interval.mean)


def _smaller(
    own: tuple[ModelResult, ModelResult], other: tuple[ModelResult, ModelResult], metric: str
) -> Difference | None:
    """By how much less a model loses than another, each like and unlike; None without a common
    seed."""
    four = [other[0], own[0], other[1], own[1]]
    seeds = common_seeds(four)
    if not seeds:
        return None
    values = [_of_seeds(r, metric, seeds) for r in four]
    interval = two_sample_interval(
        values[0] - values[1], values[2] - values[3], seeds=len(seeds) > 1
    )
    own_lost, lost = (
        np.array([_at(like, metric, s) - _at(unlike, metric, s) for s in seeds])
        for like, unlike in (own, other)
    )
    won = int((own_lost < lost).sum())
    return Difference(other[0].model, interval, won, len(seeds), all(map(deterministic, four)))
