"""The whole training path on a small world whose taste can be learned in seconds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models import artifact, serving
from models.training import pipeline, replay, retrieval
from models.training.loop import LoopConfig
from tests.unit.models import synthetic

RETRIEVAL = LoopConfig(epochs=6, batch_size=128, learning_rate=5e-3)
RANKING = LoopConfig(epochs=2, batch_size=128, learning_rate=2e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pipeline.TrainReport, str]:
    folder = tmp_path_factory.mktemp("artifacts")
    text = io.StringIO()
    report = pipeline.train_all(
        folder,
        Console(file=text, width=120),
        dataset=synthetic.dataset(users=240),
        retrieval_loop=RETRIEVAL,
        ranking_loop=RANKING,
    )
    return folder, report, text.getvalue()


def test_retrieval_beats_popularity_and_markov(
    trained: tuple[Path, pipeline.TrainReport, str],
) -> None:
    recall = trained[1].recall_at_50
    assert recall["ssl_two_tower"].mean > recall["popularity"].mean
    assert recall["ssl_two_tower"].mean > recall["markov"].mean


def test_ranking_beats_logistic_regression(
    trained: tuple[Path, pipeline.TrainReport, str],
) -> None:
    found = trained[1].quality
    assert found["masknet"]["like auc"] > found["logistic_regression"]["like auc"]
    assert found["masknet"]["click auc"] > 0.6


def test_both_models_are_published_and_answer(
    trained: tuple[Path, pipeline.TrainReport, str],
) -> None:
    folder, report, _ = trained
    found = serving.load_retrieval(artifact.current(folder, "ssl_two_tower"))
    ranked = serving.load_ranking(artifact.current(folder, "masknet"))
    assert report.versions == {"ssl_two_tower": found.version, "masknet": ranked.version}
    assert found.item_vectors.isfinite().all()
    assert ranked.model.tasks == ("click", "like")


def test_the_report_says_what_its_numbers_mean(
    trained: tuple[Path, pipeline.TrainReport, str],
) -> None:
    text = trained[2]
    for words in ("recall@50", "popularity", "markov", "like auc", "sampled negatives", "split"):
        assert words in text


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.set_num_threads(1)
    data = synthetic.dataset(users=60)
    examples = replay.replay(data)
    loop = LoopConfig(epochs=1, batch_size=128, learning_rate=5e-3)
    one, two = (retrieval.train(data, examples, loop)[0].state_dict() for _ in range(2))
    other = retrieval.train(data, examples, LoopConfig(1, 128, 5e-3, seed=1))[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert np.isfinite(one["default"].numpy()).all()
