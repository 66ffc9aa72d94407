"""What `tandem` says before it works, and the titles beside a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from models import artifact
from models.catalogue import ItemTable
from services import cli
from services.common.settings import Settings
from tests.artifacts import small_items


def published(folder: Path, items: ItemTable, dataset: str) -> Settings:
    settings = Settings(artifacts_dir=folder)
    artifact.publish(
        folder,
        settings.candidate_generation.models[0],
        tensors={},
        config={},
        items=items,
        metrics={},
        data_window={"dataset": dataset},
    )
    return settings


def test_titles_are_those_of_the_shipped_films_and_of_nothing_else(tmp_path: Path) -> None:
    assert cli._titles(Settings(artifacts_dir=tmp_path / "none")) == {}
    films = published(tmp_path / "films", small_items(), "ml-latest-small")
    assert cli._titles(films)["1"] == "Toy Story (1995)"
    assert cli._titles(published(tmp_path / "books", small_items(), "books")) == {}


@pytest.mark.parametrize("role", ["all", "router"])
def test_serve_tells_what_is_wrong_with_the_experiments_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    file = tmp_path / "experiments.yaml"
    file.write_text("version: 2\nlayers: []\n")
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TANDEM_ROUTER__EXPERIMENTS_FILE", str(file))
    result = CliRunner().invoke(cli.app, ["serve", role])
    assert result.exit_code == 1
    assert f"{file}:1: version: " in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_settings_is_told_without_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TANDEM_ROUTER__SURFACES", "home,detail")
    result = CliRunner().invoke(cli.app, ["status"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: settings: ")
    assert """JSON: '["home"]'""" in result.stderr
