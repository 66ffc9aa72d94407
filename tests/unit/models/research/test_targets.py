"""Targets: what counts as reached, from results whose differences are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from load_tests.peers import bench_training
from models.research.ranking_tables import BENCHMARKS
from models.research.retrieval_tables import TABLES
from models.research.targets import costs, page
from models.research.targets.costs import SIZES, Costs, Preparation
from models.research.targets.page import verdicts
from models.research.targets.verdicts import (
    MISSED,
    NOT_LOOKED_FOR,
    NOT_MEASURED,
    NOT_SHOWN,
    REACHED,
    TARGETS,
    Target,
    Verdict,
)
from models.training.results import ModelResult

USERS, SEEDS = 400, 3


def result(
    table: str, model: str, metric: str, level: float, spread: float = 0.01, **settings: Any
) -> ModelResult:
    """Units of mean `level`, the same noise per user for every model."""
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 0.1, USERS)
    own = np.random.default_rng(abs(hash_of(model)))
    units = []
    for _ in range(SEEDS):
        values = shared + own.normal(0, spread, USERS)
        units.append(level + values - values.mean())
    return ModelResult(
        table=table, data="d", protocol="p", model=model, settings=settings,
        seeds=tuple(range(SEEDS)), metrics={metric: tuple(float(u.mean()) for u in units)},
        per_unit={metric: units}, parameters=1, dense_parameters=1, flops_per_row=None,
        latency_ms=None, train_seconds=(1.0,) * SEEDS, machine="m", command="c",
    )  # fmt: skip


def hash_of(text: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**31


def found(results: list[ModelResult]) -> Mapping[str, Verdict]:
    return {v.target: v for v in verdicts(results)}


def test_without_results_nothing_is_claimed() -> None:
    assert {v.verdict for v in verdicts([])} == {NOT_MEASURED}


def test_the_models_built_now_have_the_published_parameters() -> None:
    built = {size.name: costs.built_parameters(size) for size in SIZES}
    other = built | {SIZES[0].name: (1,)}
    for parameters, first in ((built, REACHED), (other, MISSED)):
        judged = [v.verdict for v in verdicts([], Costs(parameters))]
        assert judged[: len(SIZES)] == [first] + [REACHED] * (len(SIZES) - 1)


def test_a_level_must_lie_in_its_band() -> None:
    inside = found([result("beauty-user-split", "MIND", "recall@50", 0.0851 * 1.14)])
    outside = found([result("beauty-user-split", "MIND", "recall@50", 0.0851 * 1.16)])
    target = next(t for t in inside if t.startswith("MIND"))
    assert (inside[target].verdict, outside[target].verdict) == (REACHED, MISSED)


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, REACHED), (0.0, NOT_SHOWN), (-0.05, MISSED)])
def test_above_means_the_whole_interval(gain: float, verdict: str) -> None:
    rows = [
        result("beauty-user-split", "HCN-R", "recall@50", 0.1 + gain),
        result("beauty-user-split", "ComiRec-SA", "recall@50", 0.1),
    ]
    assert found(rows)["HCN-R above ComiRec-SA"].verdict == verdict


def test_within_noise_means_not_worse_by_more_than_the_margin() -> None:
    def verdict(gain: float, spread: float = 0.01) -> str:
        rows = [
            result("simulator-iid", "DESMIL-R", "recall@50", 0.5 + gain, spread),
            result("simulator-iid", "ComiRec-SA", "recall@50", 0.5, spread),
        ]
        target = "DESMIL-R less than 0.01 below ComiRec-SA on users of the same kind (simulator)"
        return found(rows)[target].verdict

    assert (verdict(0.05), verdict(0.0), verdict(-0.05)) == (REACHED, REACHED, MISSED)
    assert verdict(-0.02, spread=1.0) == NOT_SHOWN  # noise is no proof of being within noise


def test_a_run_of_half_the_steps_says_so() -> None:
    half = result("beauty-user-split", "MIND", "recall@50", 0.08, budget=0.5)
    whole = result("beauty-user-split", "MIND", "recall@50", 0.08, budget=1.0)
    assert "50%" in page.shortened([half, whole])
    assert page.shortened([whole]) == ""
    assert page.shortened([half]) in "\n".join(
        page.page(verdicts([half]), "x", page.shortened([half]))
    )


def rows_everywhere(level: float = 0.1) -> list[ModelResult]:
    """Every row of every table with the same figures: no model is above another one."""
    metrics = ("recall@50", "recall@200", "tail_recall@50", "head_recall@50", "recall@10",
               "ndcg@10", "click auc", "like auc")  # fmt: skip
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    for name, table in TABLES.items():
        suffixes = ("-iid", "-ood") if table.kind == "shift" else ("",)
        rows += [(f"{name}{s}", r.model, ("ComiRec-SA",)) for s in suffixes for r in table.recipes]
    for name, benchmark in BENCHMARKS.items():
        rows += [(name, entry.label, ()) for entry in benchmark.entries]
    found = []
    for table_name, model, references in rows:
        one = result(table_name, model, "epoch_s", 100.0)
        parts = [result(table_name, model, metric, level) for metric in metrics]
        found.append(
            replace(
                one,
                metrics={k: v for r in (*parts, one) for k, v in r.metrics.items()},
                per_unit={k: v for r in (*parts, one) for k, v in r.per_unit.items()},
                references=tuple(r for r in references if r != model),
                primary="recall@50",
            )
        )
    return found


def test_every_target_that_is_not_reached_is_told_why_or_that_nobody_looked() -> None:
    slow = {c: {"plain PyTorch": {"examples_per_s": 1.0}, "loop": {"examples_per_s": 1.5}}
            for c in costs.TRAINED}  # fmt: skip
    parameters = {size.name: (1,) for size in SIZES}
    found = Costs(parameters, slow, Preparation(1_000_000, 11.0, 1.0), 61.0)
    judged = verdicts(rows_everywhere(), found)
    assert NOT_MEASURED not in {v.verdict for v in judged}
    text = "\n".join(page.page(judged, "x"))
    missed = [v for v in judged if v.verdict in (MISSED, NOT_SHOWN)]
    assert len(missed) > 40
    for verdict in missed:
        said = [line for line in text.splitlines() if line.startswith(verdict.why)]
        assert said
        assert verdict.cause or any(verdict.target in line for line in said)
        assert not verdict.cause.startswith(NOT_LOOKED_FOR)
    # A third of them and more has a cause that somebody looked for.
    assert sum(bool(v.cause) for v in missed) > len(missed) / 3


def test_what_is_reached_is_not_explained() -> None:
    rows = [
        result("beauty-user-split", "HCN-R", "recall@50", 0.2),
        result("beauty-user-split", "HCN-R, K=1", "recall@50", 0.1),
    ]
    assert found(rows)["HCN-R above its own K=1"].why == ""


@pytest.mark.parametrize(("tail", "verdict"), [(0.3, REACHED), (0.21, MISSED)])
def test_a_tail_gain_is_larger_as_a_share_of_the_twin(tail: float, verdict: str) -> None:
    def row(model: str, tail: float, head: float) -> ModelResult:
        low, high = (result("beauty-next-item", model, f"{part}_recall@50", level)
                     for part, level in (("tail", tail), ("head", head)))  # fmt: skip
        return replace(low, metrics=low.metrics | high.metrics,
                       per_unit={**low.per_unit, **high.per_unit})  # fmt: skip

    judged = found([row("SSL, CFM", tail, 0.44), row("SSL, alpha=0", 0.2, 0.4)])
    target = next(t for t in judged if t.startswith("CFM gains more"))
    assert judged[target].verdict == verdict


@pytest.mark.parametrize(("ratio", "verdict"), [(2.0, REACHED), (1.9, MISSED)])
def test_the_best_loop_must_be_twice_as_fast(ratio: float, verdict: str) -> None:
    figures = {
        "plain PyTorch": {"examples_per_s": 100.0},
        "loop fp32": {"examples_per_s": 90.0},
        "loop bf16": {"examples_per_s": 100.0 * ratio},
    }
    judged = {v.target: v for v in verdicts([], Costs(training={"MaskNet": figures}))}
    said = judged["MaskNet: a loop of at least 2 times the examples/s"]
    assert (said.measured, said.verdict) == (f"loop fp32 0.90, loop bf16 {ratio:.2f}", verdict)


@pytest.mark.parametrize(("preparation", "verdict"), [
    (Preparation(1_000_000, 9.9, 1.9), REACHED),
    (Preparation(1_000_000, 10.1, 1.9), MISSED),
    (Preparation(1_000_000, 9.9, 2.1), MISSED),
    (Preparation(1_000, 0.1, 0.1), NOT_MEASURED),
])  # fmt: skip
def test_preparation_is_judged_on_a_million_events_by_time_and_memory(
    preparation: Preparation, verdict: str
) -> None:
    judged = {v.target: v for v in verdicts([], Costs(preparation=preparation))}
    assert judged["a million events in under 10 s and 2 GB"].verdict == verdict


def test_preparation_is_timed_in_a_process_of_its_own() -> None:
    measured = costs.prepared(500)
    assert measured.events == 500
    assert 0.05 < measured.gigabytes < costs.PREPARE_GB


def rows_of_tables() -> dict[str, set[str]]:
    """The labels of every table that the benchmarks fill."""
    found = {name: {e.label for e in benchmark.entries} for name, benchmark in BENCHMARKS.items()}
    for name, table in TABLES.items():
        suffixes = ("-iid", "-ood") if table.kind == "shift" else ("",)
        found |= {name + suffix: {r.model for r in table.recipes} for suffix in suffixes}
    return found


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.text)
def test_every_target_names_rows_that_the_benchmarks_have(target: Target) -> None:
    """A renamed row would otherwise be "not measured" for ever."""
    rows = rows_of_tables()
    assert {target.model, target.over} - {""} <= rows[target.table]
    assert not target.drop_from or {target.model, target.over} <= rows[target.drop_from]


def test_every_part_that_is_taken_out_is_a_target_in_its_form() -> None:
    parts = ("mask", "LN", "FFN", "task tokens", "PGU", "cross attention")
    for entry in BENCHMARKS["simulator-ablations"].entries:
        whole, _, part = entry.label.partition(" without ")
        wholes = {t.model for t in TARGETS if t.over == entry.label}
        if part in parts:
            assert wholes == {f"{whole} full"} or wholes == {whole}


def test_a_case_of_the_training_benchmark_is_named_as_its_target() -> None:
    assert f"SASRec, {bench_training.LARGE_TABLE:,} items" == costs.TRAINED[-1]
