"""What `tandem init` writes is a whole domain: it can be imported and learned from."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data.errors import DataError
from models.data.own import dataset as own
from models.data.own.imports import Options, import_file
from models.data.own.wanted import TABLES
from models.data.worlds.recipes import example
from models.schema import compiled
from models.training import replay
from models.training.ranking import check_labels
from services.experiments.declare import config_reader
from services.experiments.declare.domain import domain_of

NOW_MS = 1_790_000_000_000


def test_the_example_imports_without_a_refusal_and_can_be_learned_from(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    example.write(folder)
    for table in TABLES:
        done = import_file(table, folder / f"{table}.csv", folder, Options(), NOW_MS)
        assert not done.tally.refused
        assert done.accepted == done.tally.read > 0
    data = own.load(folder)
    assert data.given is not None
    examples = replay.replay(data)
    assert examples.slate.shape[1] == 1, "its impressions are the negatives"
    check_labels(data, examples)
    schema = compiled.load(folder / "schema.yaml")
    config_reader.load(folder / "experiments.yaml", domain_of(schema.declaration))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="name a new folder"):
        example.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
