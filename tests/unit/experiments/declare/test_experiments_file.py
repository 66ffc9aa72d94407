"""The file in force: exchanged when it changes, kept when the new one is no good."""

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.declare.config import ExperimentsError
from tests.domains import FILMS

TEXT = """\
version: 1
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        traffic: {traffic}
        arms:
          - {{name: control, weight: {control}}}
          - {{name: mixed, weight: {mixed}, parameters: {{rerank.diversity: 0.5}}}}
"""


def text(traffic: int = 100, control: int = 50) -> str:
    return TEXT.format(traffic=traffic, control=control, mixed=100 - control)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def refused() -> float:
    return sample("tandem_experiments_reloads_total", outcome="refused")


def in_force(file: ExperimentsFile) -> int:
    return sum(len(file.assigner().assign(str(i), now_ms=0).assignments) for i in range(100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "experiments.yaml"
    path.write_text(text())
    return path


def test_a_process_does_not_start_without_valid_experiments(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ExperimentsFile(path.with_name("missing.yaml"), FILMS)
    path.write_text("version: 2")
    with pytest.raises(ExperimentsError, match=r"experiments\.yaml:1: "):
        ExperimentsFile(path, FILMS)


def test_a_changed_file_is_in_force_after_the_reload_and_not_before(path: Path) -> None:
    now = 100.0
    file = ExperimentsFile(path, FILMS, lambda: now)
    path.write_text(text(traffic=0))
    assert in_force(file) == 100
    now = 200.0
    file.reload_if_changed()
    assert in_force(file) == 0
    assert sample("tandem_experiments_file_loaded_timestamp_seconds") == 200.0


def test_the_same_bytes_keep_the_same_assigner(path: Path) -> None:
    file = ExperimentsFile(path, FILMS)
    before = file.assigner()
    path.write_text(text())
    file.reload_if_changed()
    assert file.assigner() is before


@pytest.mark.parametrize(
    "bad", ["", "version: 1\nlayers: [", text(control=40)], ids=["empty", "syntax", "moves users"]
)
def test_a_bad_file_is_reported_once_and_the_last_good_one_stays(path: Path, bad: str) -> None:
    file = ExperimentsFile(path, FILMS)
    before, count = file.assigner(), refused()
    path.write_text(bad)
    for _ in range(3):
        file.reload_if_changed()
    assert file.assigner() is before
    assert refused() == count + 1
    assert sample("tandem_experiments_file_ok") == 0
    path.write_text(text(traffic=0))
    file.reload_if_changed()
    assert in_force(file) == 0
    assert sample("tandem_experiments_file_ok") == 1


def test_a_file_that_is_gone_is_reported_once_and_welcome_back(path: Path) -> None:
    file = ExperimentsFile(path, FILMS)
    count = refused()
    path.unlink()
    for _ in range(3):
        file.reload_if_changed()
    assert in_force(file) == 100
    assert (refused(), sample("tandem_experiments_file_ok")) == (count + 1, 0)
    path.write_text(text())
    file.reload_if_changed()
    assert sample("tandem_experiments_file_ok") == 1
