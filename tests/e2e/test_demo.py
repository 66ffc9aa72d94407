"""`make demo` from beginning to end, and ended by Ctrl-C at any moment."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models import artifact
from models.data.events import Dataset
from models.training.pipeline import data_window
from tests.artifacts import built, publish
from tests.e2e.running import PATIENCE_S, Demo
from tests.servers.kafka import kafka_broker
from tests.servers.redis import redis_server

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

StartDemo = Callable[..., Demo]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    started: list[Demo] = []

    def start(artifacts: Path, *arguments: str, **settings: str) -> Demo:
        started.append(Demo(tmp_path, artifacts, *arguments, **settings))
        return started[-1]

    yield start
    for demo in started:
        demo.clean_up()


@pytest.mark.alone
def test_the_demo_trains_keeps_its_promises_and_ends_by_itself(
    start_demo: StartDemo, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    demo = start_demo(artifacts, "--exit", "--rate", "80")
    demo.process.wait(1200)
    assert demo.process.returncode == 0, demo.output()
    retrieval, *rankers = (
        json.loads((artifact.current(artifacts, name) / "metrics.json").read_text())
        for name in ("ssl_two_tower", "masknet", "mc_mlcc")
    )
    recall = {model: values["mean"] for model, values in retrieval["recall_at_50"].items()}
    assert recall["ssl_two_tower"] > max(recall["popularity"], recall["markov"])
    for name, ranker in zip(("masknet", "mc_mlcc"), rankers, strict=True):
        for measure in ("click auc", "like auc"):
            found = ranker["quality"]
            assert found[name][measure] > found["logistic_regression"][measure]
    for said in ("ssl_two_tower", "popularity", "item_knn", "masknet", "mc_mlcc", "logistic"):
        assert said in demo.output()
    summary = json.loads((demo.run_dir / "demo" / "summary.json").read_text())
    assert [c["name"] for c in summary["checks"] if c["holds"] is False] == []

    assert summary["requests"] >= 6_000
    assert summary["answered"] == summary["requests"]

    assert summary["visible_delays_s"]
    assert summary["follow_ups"] > 500
    assert summary["shown_again"] == summary["never_visible"] == 0

    arms = {(arm["experiment"], arm["arm"]): arm for arm in summary["arms"]}
    control, treatment = (arms["ranking_model", name] for name in ("control", "treatment"))
    # Whoever got no answer that ranking was asked for is exposed to nothing: on a busy machine a
    # few. That the numbers are exact is one of the demo's own checks.
    units, requests = (control[n] + treatment[n] for n in ("units", "requests"))
    assert 5_800 < units <= 6_000
    assert abs(control["units"] / units - 0.5) <= 0.01
    assert control["models"]["ranking.model"] == "masknet"
    assert treatment["models"]["ranking.model"] == "mc_mlcc"
    assert 0.95 * summary["requests"] < requests <= summary["requests"]

    grown = sum(arms["like_weight", name]["units"] for name in ("control", "treatment"))
    assert 600 < grown < 6_000
    # A list that only one ranking could make, the other being late, exposes nobody and says that
    # it is degraded: how many there are is a matter of the machine.
    interleaved = arms["diversity_preference", "interleaved"]
    assert interleaved["units"] <= 6_000
    assert interleaved["requests"] >= summary["requests"] - summary["degraded"]
    pages = sorted((demo.run_dir / "demo" / "reports").glob("*.html"))
    assert [page.stem for page in pages] == ["diversity_preference", "like_weight", "ranking_model"]
    assert "Experiments" in demo.output()

    assert summary["applied"] == summary["events"] > 6_000
    demo.assert_nothing_left()


def test_models_that_are_named_are_served_to_the_arms(
    start_demo: StartDemo, tmp_path: Path, dataset: Dataset
) -> None:
    published, window = tmp_path / "artifacts", data_window(dataset)
    recall = {"mean": 0.0, "standard_error": 0.0, "users": 0}
    metrics: dict[str, Any] = {
        name: {"recall_at_50": {name: recall}} for name in ("hcn_r", "desmil_r")
    }
    metrics["mc_mlcc"] = {"quality": {"mc_mlcc": {"click auc": 0.5, "like auc": 0.5}}}
    for name, own in metrics.items():
        publish(published, name, built(name, dataset.items), dataset.items,
                data_window=window, metrics=own)  # fmt: skip
    demo = start_demo(
        published, "--exit", "--visitors", "300", "--rate", "20",
        "--retrieval-model", "hcn_r", "--retrieval-model", "desmil_r", "--ranking-model", "mc_mlcc",
    )  # fmt: skip
    demo.process.wait(PATIENCE_S)
    summary = json.loads((demo.run_dir / "demo" / "summary.json").read_text())
    compared = [arm for arm in summary["arms"] if arm["experiment"] == "retrieval_model"]
    assert [(arm["arm"], *arm["models"].values()) for arm in compared] == [
        ("control", "hcn_r", "mc_mlcc"),
        ("treatment", "desmil_r", "mc_mlcc"),
    ]
    (had,) = (c for c in summary["checks"] if c["name"] == "each arm had its models")
    assert had["holds"], demo.output()
    demo.assert_nothing_left()


@pytest.mark.alone
@pytest.mark.kafka
@pytest.mark.redis
def test_over_redis_and_kafka_every_check_holds_too(start_demo: StartDemo, artifacts: Path) -> None:
    with redis_server() as redis, kafka_broker() as kafka:
        demo = start_demo(
            artifacts, "--exit", "--visitors", "1500", "--rate", "40",
            "--feature-store", redis.url, "--event-log", f"kafka://{kafka.bootstrap}",
        )  # fmt: skip
        demo.process.wait(PATIENCE_S)
        assert demo.process.returncode == 0, demo.output()
        summary = json.loads((demo.run_dir / "demo" / "summary.json").read_text())
        assert [c["name"] for c in summary["checks"] if c["holds"] is False] == []
        assert summary["applied"] == summary["events"] > 1_500
        assert summary["shown_again"] == summary["never_visible"] == 0
        demo.assert_nothing_left()
        again = start_demo(
            artifacts, "--exit", "--feature-store", redis.url,
            "--event-log", f"kafka://{kafka.bootstrap}",
        )  # fmt: skip
        assert again.process.wait(PATIENCE_S) == 1
        assert "holds records" in again.output()


@pytest.mark.parametrize(
    ("published", "last_words"),
    [
        pytest.param(False, "at a time", id="training"),
        pytest.param(True, "Feature store:", id="starting"),
        pytest.param(True, "requests/s", id="traffic"),
    ],
)
def test_ctrl_c_leaves_nothing_behind(
    start_demo: StartDemo, artifacts: Path, tmp_path: Path, published: bool, last_words: str
) -> None:
    demo = start_demo(artifacts if published else tmp_path / "none")
    demo.wait_for(last_words)
    assert demo.end(signal.SIGINT) == 130, demo.output()
    assert "everything has ended" in demo.output()
    demo.assert_nothing_left()


def test_nothing_survives_a_demo_that_is_killed(start_demo: StartDemo, artifacts: Path) -> None:
    demo = start_demo(artifacts)
    demo.wait_for("requests/s")
    assert demo.raylets()
    demo.end(signal.SIGKILL)
    demo.assert_nothing_left()


def test_a_taken_port_is_named_before_anything_is_done(
    start_demo: StartDemo, artifacts: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        demo = start_demo(artifacts, TANDEM_ROUTER__PORT=str(port))
        assert demo.process.wait(60) == 1
    assert f"{port} cannot be used" in demo.output()
    assert "TANDEM_ROUTER__PORT" in demo.output()
    assert not demo.run_dir.exists()
