"""The settings' schema: which file it is, and which artifacts it fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from models import artifact
from models.artifact import ArtifactError
from models.catalogue import ItemTable
from models.data.worlds.films import schema as films
from models.schema import lock
from models.schema.compiled import load
from models.schema.read import load as declared
from models.serving import load_ranking, load_retrieval
from services.common.processes.hosting import absolute_paths
from services.common.schema import SchemaRefused, schema_of
from services.common.settings import Settings
from tests.artifacts import publish_small
from tests.unit.models.schema.declared import SHOP, shop

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


def test_a_file_may_declare_otherwise_than_the_films(tmp_path: Path) -> None:
    more = ("  like: {id: 3,", "  share: {id: 4}\n  like: {id: 3,")
    assert 4 in schema_of(of(tmp_path, more)).accepted
    (tmp_path / "shop.yaml").write_text(SHOP)
    other = Settings(schema_file=tmp_path / "shop.yaml")
    assert schema_of(other).declaration == shop()


NEVER_FADING = (
    ("click: {half_lives: [90d, none]", "click: {half_lives: [90d]"),
    ("like: {half_lives: [90d, none]", "like: {half_lives: [90d]"),
    ("  liked_ever: {ratio: [like, click], side: item}\n", ""),
)
LESS_HISTORY = (
    ("like: {id: 3, history: true, upgrades: [click]}", "like: {id: 3}"),
    ("  liked: {pool: [like]}\n", ""),
)
MOOD = ("    year: {", "    mood: {type: category, values: [a, b]}\n    year: {")
OF_MOOD = ("half_life: 365d}", "half_life: 365d}\n    mood: {by: [click]}")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the films."""
    folder = tmp_path_factory.mktemp("artifacts")
    publish_small(folder, ["ssl_two_tower", "fm"])
    return folder


@pytest.mark.parametrize(
    ("changes", "retrieval", "ranking"),
    [
        ([("    impression: {models: none}\n", "")], "", ""),
        ([("history: true, upgrades: [click]", "history: true")], "", ""),
        ([("length: 200", "length: 100")], "", ""),
        ([MOOD], "", ""),
        ([("Thriller, War, Western]", "Thriller, War, Western, Zombie]")], "", ""),
        ([("diversity: genres", "diversity: tags")], "", ""),
        ([("genres: {by: [click], half_life: 365d}", "genres: {by: [click], half_life: 9d}")],
         "it reads affinity.genres.genres.2_31536000s of profile",
         "it reads affinity.genres.genres.2_31536000s of profile"),
        ([("values: [Action, Adventure,", "values: [Adventure, Action,")],
         "it reads user.genres by other values", "it reads user.genres by other values"),
        (NEVER_FADING, "", "it reads count_2 of counters"),
        (LESS_HISTORY, "it reads histories of other events", "it reads histories of other events"),
        ([MOOD, OF_MOOD], "items have no field mood", "items have no field mood"),
    ],
)  # fmt: skip
def test_what_models_and_tables_hold_must_be_in_the_schema_of_who_loads_them(
    tmp_path: Path,
    artifacts: Path,
    changes: Sequence[tuple[str, str]],
    retrieval: str,
    ranking: str,
) -> None:
    schema = schema_of(of(tmp_path, *changes))
    for loader, name, said in (
        (load_retrieval, "ssl_two_tower", retrieval),
        (load_ranking, "fm", ranking),
    ):
        folder = artifact.current(artifacts, name)
        if not said:
            assert loader(folder, schema=schema).version == folder.name
            continue
        with pytest.raises(ArtifactError) as refused:
            loader(folder, schema=schema)
        assert said in str(refused.value)
        assert "schema.yaml" in str(refused.value)
        assert str(folder) in str(refused.value)


def test_items_are_checked_by_what_is_looked_at_without_a_model(
    tmp_path: Path, artifacts: Path
) -> None:
    """By routers and updaters: affinities and diversity look at items."""
    folder = artifact.current(artifacts, "fm")

    def load(name: str, *changes: tuple[str, str]) -> ItemTable:
        (tmp_path / name).mkdir()
        return artifact.load_items(folder, schema_of(of(tmp_path / name, *changes)))

    assert len(load("same")) == len(load("less", *NEVER_FADING)) == 60
    assert len(load("unlike the model's", *LESS_HISTORY)) == 60
    with pytest.raises(ArtifactError, match="items have no field mood as schema"):
        load("more", MOOD, OF_MOOD)
    with pytest.raises(ArtifactError, match="items have no field genres as schema"):
        load("swapped", ("values: [Action, Adventure,", "values: [Adventure, Action,"))


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
