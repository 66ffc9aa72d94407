"""`tandem experiments what-if`, as its user sees it: a log and a catalogue on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from load_tests.experiments.explored_world import LOGGING, START_MS, World
from load_tests.serving.feeding import feed
from protos.tandem.v1.records_pb2 import DecisionRecord, FeedbackEvent
from services.common.settings import EventLogSettings, Settings
from services.event_log.connect import connect
from services.event_log.interface import Record
from services.event_log.topics import DECISIONS, FEEDBACK
from services.experiments.cli.experiments import app
from services.experiments.what_if.answer import what_if
from services.experiments.what_if.log import Target, WhatIfLog
from services.experiments.what_if.off_policy.weights import Requirements
from services.experiments.what_if.question import CannotAsk, duration_ms
from tests.domains import FILMS, VALUE_MODEL
from tests.unit.experiments.what_if.logs import CLICKS

WORLD = World.of(3)
EXPERIMENTS = """\
version: 1
metrics:
  - {name: p99, kind: quantile, of: latency, quantile: 0.99, better: lower}
  - {name: clicks, kind: mean, of: click, better: higher}
  - {name: clicked, kind: binary, of: click, better: higher}
layers:
  - name: models
    parameters: [ranking.model]
    experiments:
      - name: ranker
        arms:
          - {name: control, weight: 50}
          - {name: other, weight: 50, parameters: {ranking.model: mc_mlcc}}
  - name: value
    parameters: [rerank.like_weight]
    experiments:
      - name: mix
        arms:
          - {name: control, weight: 50}
          - {name: liked, weight: 50, parameters: {rerank.like_weight: 5.0}}
        primary: {metric: clicked, minimal_effect: 0.1}
"""
AT = "2023-11-15T00:00:00Z"  # two hours after START_MS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("what_if")
    (folder / "experiments.yaml").write_text(EXPERIMENTS)
    feed(
        Settings(run_dir=folder, event_log=EventLogSettings(url=f"log://{folder}/events")),
        WORLD.items,
    )
    messages = list(WORLD.traffic(LOGGING, 300, 2, np.random.default_rng(1)))
    log = connect(EventLogSettings(url=f"log://{folder}/events"), None)
    for topic, part in (
        (FEEDBACK, [event for _, events in messages for event in events]),
        (DECISIONS, [record for record, _ in messages]),
    ):
        log.append(topic, [packed(message) for message in part]).result()
    log.append(FEEDBACK, [Record(b"u", b"\xff\xff", START_MS)]).result()
    log.close()
    return folder


def packed(message: DecisionRecord | FeedbackEvent) -> Record:
    return Record(message.user_id.encode(), message.SerializeToString(), message.event_time_ms)


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(
        app,
        ["what-if", *options, "--file", str(folder / "experiments.yaml"), "--at", AT],
        env={
            "TANDEM_EVENT_LOG__URL": f"log://{folder}/events",
            "TANDEM_RUN_DIR": str(folder),
            "COLUMNS": "150",
        },
    )


def test_the_command_says_what_the_collected_log_says(folder: Path) -> None:
    result = run(folder, "mix", "--arm", "liked", "--metric", "clicks", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    log = WhatIfLog(
        Target({"rerank.like_weight": 5.0}, FILMS.parameters),
        WORLD.items,
        VALUE_MODEL,
        START_MS,
        START_MS + 1e9,
    )
    for record, events in WORLD.traffic(LOGGING, 300, 2, np.random.default_rng(1)):
        log.on_decision(record)
        for event in events:
            log.on_feedback(event)
    expected = what_if(log, CLICKS, "auto", Requirements())
    assert found.pop("question").startswith("What if everybody got liked of mix (rerank.like_w")
    assert found.pop("undecodable") == 1
    assert found | {"undecodable": 0} == json.loads(json.dumps(expected.to_json()))
    assert found["requests"] == 600
    assert found["estimator"] == "rips"


def test_the_table_names_value_interval_estimator_and_what_was_left_out(folder: Path) -> None:
    output = run(folder, "--set", "rerank.like_weight=5", "--set", "rerank.diversity=0.2").output
    for text in (
        "What if rerank.like_weight = 5.0, rerank.diversity = 0.2?",
        "clicks: clicks per request; 600 requests of 300 users",
        "as logged",
        "95 % interval",
        "effective users",
        "which assumes that what a place earns does not depend on the places below it",
        "were outside of the window of 1800 s",
        "1 records of the log could not be read",
        "The target ranks the items of each logged ranking",
    ):
        assert text in output
    # A shorter time: earlier requests are out of it, and the feedback of later ones is awaited.
    assert (
        "of 300 users" not in run(folder, "--set", "rerank.like_weight=5", "--last", "95m").output
    )


def test_the_metric_is_the_experiments_primary_one(folder: Path) -> None:
    output = run(folder, "mix", "--arm", "liked").output
    assert "clicked: share of requests with at least one click" in output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nothing", "--arm", "b"], "there is no experiment 'nothing'"),
        (["mix"], "say which arm of mix by --arm: one of control, liked"),
        (["mix", "--arm", "b"], "one of control, liked"),
        (["--arm", "liked"], "give its name"),
        ([], "name an experiment with --arm, or parameters with --set"),
        (["--set", "rerank.like_weight"], "NAME=VALUE"),
        (["--set", "rerank.like_weight=much"], "a number from 0 to 100"),
        (["--set", "rerank.taste=1"], "there is no parameter 'rerank.taste'"),
        (["--set", "rerank.diversity=0.5", "--last", "soon"], "Write --last like 90m, 24h or 7d"),
        (["--set", "rerank.diversity=0.5", "--metric", "ctr"], "Use one of p99, clicks, clicked"),
        (["--set", "rerank.diversity=0.5", "--metric", "p99"], "Refused: p99 is of latency"),
        (["--set", "rerank.diversity=0.5", "--estimator", "best"], "Use auto or one of rips"),
        (["--set", "rerank.diversity=0.5", "--clip", "0"], "Give a weight above 0"),
        (["ranker", "--arm", "other"], "Refused: ranking.model = mc_mlcc cannot be evaluated"),
        (["--set", "rerank.exploration_depth=9", "--last", "2h"], "items beyond it were never"),
        (["--set", "rerank.diversity=0.5", "--last", "30m"], "no request of this time"),
    ],
)
def test_what_cannot_be_asked_or_known_is_one_sentence(
    folder: Path, options: list[str], sentence: str
) -> None:
    result = run(folder, *options)
    assert result.exit_code == 1
    assert sentence in result.output
    assert len(result.output.splitlines()) == 1


def test_a_missing_catalogue_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    result = run(tmp_path, "--set", "rerank.diversity=0.5")
    assert result.exit_code == 1
    assert "the catalogue holds no item" in result.output


@pytest.mark.parametrize(
    ("text", "ms"), [("90m", 5_400_000), ("24h", 86_400_000), ("7d", 604_800_000), ("1.5s", 1_500)]
)
def test_times_are_numbers_with_a_unit(text: str, ms: float) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "24", "h", "0h", "-1h", "1h30m", "1 week"])
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(CannotAsk):
        duration_ms(text)
