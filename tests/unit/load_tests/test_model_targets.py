"""Targets: what counts as reached, from results whose differences are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from load_tests import model_targets
from load_tests.bench_models_ranking import BENCHMARKS
from load_tests.model_targets import (
    ABLATIONS,
    MISSED,
    NOT_MEASURED,
    NOT_SHOWN,
    OURS,
    REACHED,
    Verdict,
    verdicts,
)
from load_tests.retrieval_tables import TABLES
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
        return next(v for v in verdicts(rows) if v.target.startswith("DESMIL-R less")).verdict

    assert (verdict(0.05), verdict(0.0), verdict(-0.05)) == (REACHED, REACHED, MISSED)
    assert verdict(-0.02, spread=1.0) == NOT_SHOWN  # noise is no proof of being within noise


def test_a_run_of_half_the_steps_says_so() -> None:
    half = result("beauty-user-split", "MIND", "recall@50", 0.08, budget=0.5)
    whole = result("beauty-user-split", "MIND", "recall@50", 0.08, budget=1.0)
    assert "50%" in model_targets.shortened([half, whole])
    assert model_targets.shortened([whole]) == ""
    assert model_targets.shortened([half]) in "\n".join(
        model_targets.page(verdicts([half]), "x", model_targets.shortened([half]))
    )


def test_every_target_names_rows_that_the_benchmarks_have() -> None:
    """A renamed row would otherwise be "not measured" for ever."""
    labels = {e.label for e in BENCHMARKS["simulator-ablations"].entries}
    assert {name for pair in ABLATIONS for name in pair} <= labels
    for table in model_targets.RANKING_TABLES:
        rows = {e.label for e in BENCHMARKS[table].entries}
        assert {*OURS, "DeepFM", "DCN-V2", "LR", "MMoE"} <= rows
    beauty = {r.model for r in TABLES["beauty-user-split"].recipes}
    assert {*model_targets.BEAUTY_BAND, "HCN-R", "HCN-R, K=1"} <= beauty
    assert {"SSL, CFM", "SSL, alpha=0"} <= {r.model for r in TABLES["beauty-next-item"].recipes}
    assert {"SASRec", "SASRec, sampled softmax", "HCN-R, K=1"} <= {
        r.model for r in TABLES["ml-1m-leave-one-out"].recipes
    }


def test_every_explanation_belongs_to_a_target() -> None:
    assert set(model_targets.WHY) <= {v.target for v in verdicts([])}
