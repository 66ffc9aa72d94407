"""The settings' schema: which file it is, and what of it models and tables can follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.schema import films, lock
from models.schema.compiled import load
from models.schema.read import load as declared
from services.common.processes.hosting import absolute_paths
from services.common.schema import SchemaRefused, schema_of
from services.common.settings import Settings

FILMS = films.FILE.read_text()


def of(folder: Path, *changes: tuple[str, str]) -> Settings:
    text = FILMS
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "schema.yaml").write_text(text)
    return Settings(schema_file=folder / "schema.yaml")


def test_the_lock_of_the_films_has_all_that_they_declare() -> None:
    assert load(films.FILE).digest == films.SCHEMA.digest
    assert schema_of(Settings()) is films.SCHEMA


def test_a_file_may_declare_more_than_the_films(tmp_path: Path) -> None:
    more = ("  like: {id: 3,", "  share: {id: 4}\n  like: {id: 3,")
    assert 4 in schema_of(of(tmp_path, more)).accepted


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    impression: {models: none}\n", "", "models read count_1 of profile"),
        ("genres: {by: [click], half_life: 365d}", "genres: {by: [click], half_life: 9d}",
         "models read affinity.genres.genres.2_31536000s of profile"),
        ("values: [Action, Adventure,", "values: [Adventure, Action,",
         "models read genres of profile"),
        ("history: true, upgrades: [click]", "history: true", "models read 3 of history"),
        ("    year: {", "    mood: {type: category, values: [a]}\n    year: {", ""),
        ("diversity: genres", "diversity: tags",
         "item tables have no field tags with these values"),
    ],
)  # fmt: skip
def test_what_models_and_tables_read_must_be_in_it(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    settings = of(tmp_path, (old, new))
    if not said:
        schema_of(settings)
        return
    with pytest.raises(SchemaRefused) as refused:
        schema_of(settings)
    assert said in str(refused.value)
    assert str(settings.schema_file) in str(refused.value)


def test_an_affinity_must_be_of_a_field_that_item_tables_hold(tmp_path: Path) -> None:
    mood = ("    year: {", "    mood: {type: category, values: [a, b]}\n    year: {")
    by = ("    genres: {by: [click], half_life: 365d}",
          "    genres: {by: [click], half_life: 365d}\n    mood: {by: [click]}")  # fmt: skip
    with pytest.raises(SchemaRefused, match="item tables have no field mood"):
        schema_of(of(tmp_path, mood, by))


def test_a_file_that_is_not_there_or_wrong_is_refused_in_a_sentence(tmp_path: Path) -> None:
    settings = Settings(schema_file=tmp_path / "none.yaml")
    with pytest.raises(SchemaRefused, match="cannot be read"):
        schema_of(settings)
    broken = of(tmp_path, ("format: 1", "format: 2"))
    with pytest.raises(SchemaRefused, match=r"schema\.yaml:2"):
        schema_of(broken)
    with pytest.raises(SchemaRefused, match="schema_write: 5 is no revision"):
        schema_of(Settings(schema_write=5))


def test_replicas_in_another_working_directory_read_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert absolute_paths(Settings(schema_file=Path("schema.yaml"))).schema_file == (
        tmp_path / "schema.yaml"
    )
    assert absolute_paths(Settings()).schema_file is None


def test_the_digest_tells_what_is_read_and_written_apart(tmp_path: Path) -> None:
    first = schema_of(of(tmp_path))
    known = lock.Lock().with_(declared(tmp_path / "schema.yaml"))
    lock.write(tmp_path / lock.NAME, known)
    assert load(tmp_path / "schema.yaml").digest == first.digest  # of layouts, not of numbers
    assert films.SCHEMA.digest != first.digest  # which read rows of the first version, too
