"""A published version is measured on what it has not seen, and as the training report measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import artifact
from models.data.errors import DataError
from models.data.events import Dataset
from models.serving import load_ranking, load_retrieval
from models.training import ranking, retrieval
from models.training.artifact_evaluation import list_figures, measure
from models.training.metrics import recall_at
from models.training.pipeline import data_window
from models.training.replay import replay
from models.training.results import ModelResult
from models.training.retrieval_cases import retrieval_cases
from tests.artifacts import built, publish
from tests.unit.models import synthetic


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthetic.dataset(users=60, events_per_user=12)


def published(folder: Path, dataset: Dataset, name: str, window: dict[str, object]) -> Path:
    """An untrained model, published as training does."""
    settings = {"units": 16} if name == "masknet" else {}
    publish(folder, name, built(name, dataset.items, **settings), dataset.items, data_window=window)
    return artifact.current(folder, name)


def test_recall_and_auc_are_those_of_the_training_report(tmp_path: Path, dataset: Dataset) -> None:
    window = data_window(dataset)
    examples = replay(dataset)

    folder = published(tmp_path, dataset, "ssl_two_tower", window)
    found = {r.model: r for r in measure(folder, dataset, command="tandem evaluate")}
    assert list(found) == ["ssl_two_tower", "popularity", "markov", "itemknn", "ease"]
    cases = retrieval_cases(examples, dataset.train_until_ms)
    loaded = load_retrieval(folder)
    scores = loaded.model.encode_users(cases.batch)[:, 0] @ loaded.item_vectors.T
    expected = recall_at(scores.numpy(), cases.seen, cases.targets, 50).mean
    assert found["ssl_two_tower"].metrics["recall@50"][0] == pytest.approx(expected)
    counted = retrieval.baseline_recall(dataset, examples, cases, dataset.train_until_ms)
    for name, estimate in counted.items():
        assert found[name].metrics["recall@50"][0] == pytest.approx(estimate.mean)

    folder = published(tmp_path, dataset, "masknet", window)
    model, regression = measure(folder, dataset)
    test = np.flatnonzero(examples.time_ms >= dataset.train_until_ms)
    quality = ranking.task_quality(load_ranking(folder).model, examples, test)
    counted_auc = ranking.regression_auc(dataset, examples, test)
    assert list(quality) == list(counted_auc) == ["click auc", "like auc"]
    for name, value in quality.items():
        assert model.metrics[name][0] == pytest.approx(value)
    for name, value in counted_auc.items():
        assert regression.metrics[name][0] == pytest.approx(value)

    for each in (*found.values(), model, regression):
        assert ModelResult.load(each.save(tmp_path / "results")).metrics == each.metrics


def test_a_version_that_has_seen_the_test_period_is_refused(
    tmp_path: Path, dataset: Dataset
) -> None:
    later = data_window(dataset) | {"until_ms": dataset.train_until_ms + 1}
    with pytest.raises(DataError, match="the test period of synthetic begins"):
        measure(published(tmp_path, dataset, "masknet", later), dataset)
    with pytest.raises(DataError, match="trained on events until None"):
        measure(published(tmp_path, dataset, "masknet", {}), dataset)


def test_baselines_learn_from_the_versions_own_training_period(
    tmp_path: Path, dataset: Dataset
) -> None:
    times = np.sort(dataset.train["event_time_ms"])
    early = int(times[len(times) // 2])
    found = {
        until: {
            r.model: r
            for r in measure(
                published(tmp_path / str(until), dataset, "ssl_two_tower",
                        data_window(dataset) | {"until_ms": until}),
                dataset,
            )
        }
        for until in (dataset.train_until_ms, early)
    }  # fmt: skip
    examples = replay(dataset)
    rows = examples.item[examples.time_ms < early]
    counts = np.bincount(rows, minlength=len(dataset.items) + 1).astype(float)
    counts[0] = 0
    cases = retrieval_cases(examples, dataset.train_until_ms)
    expected = recall_at(
        np.tile(counts, (len(cases.targets), 1)), cases.seen, cases.targets, 10
    ).mean
    assert found[early]["popularity"].metrics["recall@10"][0] == pytest.approx(expected)
    for until in found:
        assert found[until]["ease"].settings == {"deterministic": True}
    late = found[dataset.train_until_ms]

    def recalls(until: int, name: str) -> np.ndarray:
        return found[until][name].per_unit["recall@10"][0]

    counted = ("popularity", "markov", "itemknn", "ease")
    assert any(
        not np.array_equal(recalls(early, n), recalls(dataset.train_until_ms, n)) for n in counted
    )
    model = "ssl_two_tower"
    assert found[early][model].metrics["recall@10"] == late[model].metrics["recall@10"]


def test_a_version_of_another_catalogue_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    other = synthetic.dataset(users=60, events_per_user=12, seed=1)
    window = data_window(dataset) | {"until_ms": other.train_until_ms}
    with pytest.raises(DataError, match="its catalogue of"):
        measure(published(tmp_path, dataset, "masknet", window), other)


def test_figures_of_lists_by_hand() -> None:
    counts = np.array([0.0, 9, *[1] * 9])
    genres = np.zeros((11, 2))
    genres[1:6, 0] = genres[6:, 1] = 1
    lists = np.array([[1, 6], [2, 3]])
    per_user, overall = list_figures(
        np.pad(lists, ((0, 0), (0, 8))), [np.array([1, 2]), np.array([3])], counts, genres
    )
    assert per_user["recall@10"].tolist() == [0.5, 1]
    assert per_user["head_recall@10"][0] == 1
    assert np.isnan(per_user["head_recall@10"][1])
    assert per_user["tail_recall@10"].tolist() == [0, 1]
    assert per_user["value_diversity@10"].tolist() == pytest.approx([1, 0])
    assert overall["coverage@10"] == 0.4
