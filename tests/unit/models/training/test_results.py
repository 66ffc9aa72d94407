"""A saved result is read back as it was; one that contradicts itself is never written."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.data.errors import DataError
from models.training import results
from models.training.results import ModelResult, flops_per_row, latency_ms, parameter_counts


def example(model: str = "HCN-R, K=1", table: str = "beauty", users: int = 40) -> ModelResult:
    rng = np.random.default_rng(len(model))
    units = [rng.random(users).astype(np.float32) for _ in range(2)]
    return ModelResult(
        table=table, data="amazon-beauty", protocol="user split", model=model,
        settings={"d": np.int64(64), "hidden": (3, 4)}, seeds=(0, 1),
        metrics={"recall@50": tuple(float(u.mean()) for u in units), "coverage": (0.5, 0.25)},
        per_unit={"recall@50": units}, parameters=100, dense_parameters=10, flops_per_row=None,
        latency_ms=1.5, train_seconds=(1.0, 2.0), machine="here", command="make bench-models",
    )  # fmt: skip


def test_a_result_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = example()
    path = saved.save(tmp_path)
    loaded = ModelResult.load(path)
    for name in ("table", "model", "seeds", "metrics", "parameters", "latency_ms", "created"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert loaded.settings == {"d": 64, "hidden": [3, 4]}
    for got, expected in zip(
        loaded.per_unit["recall@50"], saved.per_unit["recall@50"], strict=True
    ):
        assert (got == expected).all()
    assert results.load_all(tmp_path)[0].model == saved.model


def test_one_reference_or_several(tmp_path: Path) -> None:
    """Files that name one reference are read as before."""
    several = replace(example(), references=("DeepFM", "LR"))
    path = several.save(tmp_path)
    assert ModelResult.load(path).references == ("DeepFM", "LR")
    old = json.loads(path.read_text())
    del old["references"]
    path.write_text(json.dumps(old | {"reference": "DeepFM"}))
    assert ModelResult.load(path).references == ("DeepFM",)
    path.write_text(json.dumps(old | {"reference": ""}))
    assert ModelResult.load(path).references == ()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"metrics": {"recall@50": (0.5,)}, "per_unit": {}}, "2 finite values"),
        ({"metrics": {"recall@50": (0.5, float("nan"))}, "per_unit": {}}, "finite"),
        ({"metrics": {"recall@50": (0.9, 0.1)}}, "have mean"),
        ({"per_unit": {"hr@50": [np.zeros(2)] * 2}}, "not a metric"),
        ({"seeds": ()}, "must not be empty"),
    ],
)
def test_a_result_that_contradicts_itself_is_never_written(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        replace(example(), **change).save(tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_a_failed_write_leaves_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = example().save(tmp_path)
    before = path.read_text()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(example(), notes="new").save(tmp_path)
    assert path.read_text() == before
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".npz"]


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result files"):
        results.load_all(tmp_path)
    path = example().save(tmp_path)
    path.with_suffix(".npz").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match=r"hcn-r-k=1\.json"):
        ModelResult.load(path)


def test_two_models_cannot_share_a_file(tmp_path: Path) -> None:
    example("MIND 2").save(tmp_path)
    with pytest.raises(DataError, match="already holds model 'MIND 2'"):
        example("mind-2").save(tmp_path)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.again = self.table
        self.linear = nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.zeros(7), requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.linear(self.table(rows))


def test_parameters_and_flops_by_hand() -> None:
    model = _Tied()
    assert parameter_counts(model) == (10 * 4 + 4 * 3 + 3, 4 * 3 + 3)
    assert flops_per_row(model, torch.zeros(6, dtype=torch.long)) == 2 * 4 * 3
    assert flops_per_row(model, torch.zeros(6, dtype=torch.long), rows=3) == 4 * 4 * 3


class _ParameterAsInput(nn.Module):
    """Gives a weight of its own to another module, as networks with learned tokens do."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 4))
        self.linear = nn.Linear(4, 3, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.linear(self.token).T


def test_flops_of_a_module_that_reads_a_parameter() -> None:
    flops = flops_per_row(_ParameterAsInput(), torch.zeros(6, 1).expand(6, 3))
    assert flops == (2 * 4 * 3 + 6 * 2 * 3) / 6


def test_latencies_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.001, 1.0, 1.010, 2.0, 2.003, 3.0, 3.030, 4.0, 4.002, 5.0, 5.020])
    monkeypatch.setattr(results.time, "process_time", lambda: next(clock))
    called: list[str] = []
    found = results.latencies_ms(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=3, warmup=1
    )
    assert called == ["a", "b"] + ["a", "b"] * 3
    assert found == {"a": pytest.approx(2.0), "b": pytest.approx(20.0)}


def test_latency_is_the_median_of_the_calls_after_warming_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 0.001, 1.0, 1.005, 2.0, 2.002])
    monkeypatch.setattr(results.time, "process_time", lambda: next(clock))
    calls = []
    assert latency_ms(lambda: calls.append(1), repeats=3, warmup=2) == pytest.approx(2.0)
    assert len(calls) == 5
