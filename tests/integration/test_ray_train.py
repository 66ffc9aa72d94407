"""Two workers of Ray Train follow one worker's loss curve at the same global batch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console

from models import artifact, registry, serving
from models.data.events import Dataset
from models.training import distributed, pipeline, ranking, replay, retrieval
from models.training.loop import LoopConfig, LoopReport
from models.training.replay import Examples
from tests.unit.models import synthetic

pytestmark = pytest.mark.ray

# 127 is odd: the shares of a batch differ in size.
LOOP = LoopConfig(epochs=2, batch_size=127, learning_rate=2e-3, patience=2)
SMALL: dict[str, dict[str, Any]] = {
    # In-batch negatives, and numbers drawn per row: corpus items and dropped values.
    "ssl_two_tower": {"field_width": 8, "hidden": (16,), "width": 8},
    "comirec_sa": {"width": 16, "negatives": 60},
    "masknet": {"units": 32, "tower": (16,), "width": 8},
    # Parameters that no logit depends on, for which a worker must not wait.
    "infnet": {"width": 8, "blocks": 2, "prune_last_block": False},
}


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Examples]:
    torch.set_num_threads(1)
    dataset = synthetic.dataset(users=60)
    return dataset, replay.replay(dataset)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    folders = set(Path("/tmp").glob("tandem-ray-*"))
    yield
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before
    assert set(Path("/tmp").glob("tandem-ray-*")) <= folders


def _together(**arguments: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """All models in one cluster: starting one takes seconds."""
    reports, modules = {}, torch.nn.ModuleDict()
    for name, (module, config) in arguments.pop("jobs").items():
        model, report = module.train(
            **arguments, name=name, model=config, device=distributed.worker_device()
        )
        modules[name], reports[name] = model, asdict(report)
    return modules, reports


@pytest.fixture(scope="module")
def both(data: tuple[Dataset, Examples]) -> dict[str, list[tuple[LoopReport, dict[str, Any]]]]:
    """Per model, report and weights of one process and of two workers."""
    dataset, examples = data
    jobs = {
        name: (module, module.model_config(dataset.schema, dataset.items, name, **settings))
        for name, settings in SMALL.items()
        for module in (retrieval if registry.kind_of(name).part == "retrieval" else ranking,)
    }
    shared = {"dataset": dataset, "examples": examples, "loop": LOOP}
    weights, reports = distributed.run(_together, {**shared, "jobs": jobs}, workers=2)
    found: dict[str, list[tuple[LoopReport, dict[str, Any]]]] = {}
    for name, (module, config) in jobs.items():
        model, report = module.train(**shared, name=name, model=config)
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        found[name] = [
            (report, model.state_dict()),
            (LoopReport.from_json(reports[name]), own),
        ]
    return found


@pytest.mark.parametrize("name", list(SMALL))
def test_two_workers_follow_one_workers_curve(
    name: str, both: dict[str, list[tuple[LoopReport, dict[str, Any]]]]
) -> None:
    (one, weights), (two, theirs) = both[name]
    assert len(one.losses) == 2
    assert one.losses[1] < one.losses[0]
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-4)
    np.testing.assert_allclose(two.validation, one.validation, atol=5e-3)
    assert two.steps == one.steps
    assert weights.keys() == theirs.keys()
    for key in weights:
        torch.testing.assert_close(theirs[key], weights[key], atol=5e-3, rtol=5e-2)


def test_two_workers_train_measure_and_publish(tmp_path: Path) -> None:
    text = io.StringIO()
    report = pipeline.train_all(
        tmp_path,
        Console(file=text, width=120),
        dataset=synthetic.dataset(users=60),
        parts=("ranking",),
        ranking_models=("fm",),
        ranking_loop=replace(LOOP, epochs=1),
        settings={"fm": {"width": 4}},
        workers=2,
    )
    loaded = serving.load_ranking(artifact.current(tmp_path, "fm"))
    assert loaded.version == report.versions["fm"]
    assert 0 < report.quality["fm"]["click auc"] < 1
    assert "2 workers of Ray Train" in text.getvalue()
    assert json.loads((artifact.current(tmp_path, "fm") / "metrics.json").read_text())["losses"]


def _broken(**arguments: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    raise ValueError("the data is not there")


def test_a_workers_failure_is_told_in_a_sentence() -> None:
    with pytest.raises(distributed.WorkersFailed, match="the data is not there"):
        distributed.run(_broken, {}, workers=2)
