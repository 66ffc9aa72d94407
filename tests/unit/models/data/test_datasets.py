"""`tandem data`: the registry, what `prepare` writes, and every kind of damaged source."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.data import cli, datasets
from models.data.cli import app
from models.data.datasets import DATA_SETS, load_sequences, prepare
from models.data.errors import DataError
from models.data.own.tables import tables
from models.data.tables import FieldTable
from tests.unit.models.data.owner_files import WRITERS

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 12345\n"
runner = CliRunner()


@pytest.fixture
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    WRITERS[request.param](folder)
    return folder


def every_file() -> list[tuple[str, str]]:
    """(data set, file) for each file that a reader of the tiny sources needs."""
    files = {
        "ml-1m": ["ratings.dat", "users.dat", "movies.dat"],
        "amazon-beauty": ["Beauty.txt", "Beauty_item2attributes.json"],
        "criteo-x4": ["train.txt"],
        "avazu-x4": ["train.csv"],
    }
    return [
        (name, file)
        for name in WRITERS
        for file in files.get(name, [f for f in DATA_SETS[name].files if "*" not in f])
    ]


def at(folder: Path, file: str) -> Path:
    return folder / file if (folder / file).exists() else folder / "data" / file


def test_every_data_set_of_the_issue_is_listed_with_page_and_terms() -> None:
    assert set(WRITERS) | {"ml-latest-small", "simulator"} == set(DATA_SETS)
    for data in DATA_SETS.values():
        assert data.terms.endswith(".")
        assert data.page
        assert data.generated == (data.name == "simulator")


def test_every_checksum_is_one_that_can_be_compared() -> None:
    for data in DATA_SETS.values():
        for checksum in data.checksums.values():
            assert re.fullmatch(r"md5:[0-9a-f]{32}|git:[0-9a-f]{40}", checksum), data.name


def test_another_file_under_an_owners_name_is_refused(tmp_path: Path) -> None:
    for name in ("amazon-beauty", "grocery", "ml-1m"):
        source = tmp_path / name
        source.mkdir()
        WRITERS[name](source)
        (source / "ml-1m.txt").write_text("1 1\n")
        with pytest.raises(DataError, match="checksum is git:"):
            prepare(DATA_SETS[name], source, tmp_path / "out")


@pytest.mark.parametrize(("source", "name"), [(n, n) for n in WRITERS], indirect=["source"])
def test_prepared_data_loads_as_it_was_made(source: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    made = prepare(DATA_SETS[name], source, out, verify=False)
    if made.table is not None:
        loaded = FieldTable.load(out / "table").check()
        np.testing.assert_array_equal(loaded.categorical, made.table.categorical)
    if made.sequences is not None:
        sequences = load_sequences(out / "sequences")
        np.testing.assert_array_equal(sequences.items, made.sequences.items)
        assert sequences.item_ids == made.sequences.item_ids
        assert sequences.item_attributes == made.sequences.item_attributes
    assert (made.table is not None) == (DATA_SETS[name].table is not None)
    assert (made.sequences is not None) == (DATA_SETS[name].sequences is not None)
    # Tiny files never have the owner's number of rows: it is said wherever it is known.
    assert any("the owner's files have" in n for n in made.notes) == bool(DATA_SETS[name].rows)


@pytest.mark.parametrize(
    ("source", "name"), [(n, n) for n in WRITERS if DATA_SETS[n].world], indirect=["source"]
)
def test_prepared_data_are_a_domain_of_the_same_events(
    source: Path, tmp_path: Path, name: str
) -> None:
    made = prepare(DATA_SETS[name], source, tmp_path / "out", verify=False)
    own = tables(tmp_path / "out")
    events, items = own.events.collect(), own.items.collect()
    counts = dict(events["event"].value_counts().iter_rows())
    shown = [event.name for event in own.schema.declaration.events if event.impression]
    if made.table is not None:
        assert counts[shown[0]] == len(made.table)
        labels = dict(zip(made.table.tasks, made.table.labels.sum(0).tolist(), strict=True))
        assert {task: n for task, n in counts.items() if task not in shown} == {
            task: n for task, n in labels.items() if task in counts
        }
    else:
        assert made.sequences is not None
        of_users = [
            own["item_id"].to_list()
            for _, own in events.sort("user_id", maintain_order=True).group_by(
                "user_id", maintain_order=True
            )
        ]
        ids = np.array(made.sequences.item_ids)
        expected = np.split(ids[made.sequences.items - 1], made.sequences.offsets[1:-1])
        assert of_users == [each.tolist() for each in expected]
    assert set(events["item_id"]) >= set(items["item_id"])
    fields = [field.name for field in own.schema.declaration.item_fields]
    assert {f for f in fields if items[f].is_null().all()} <= {"music"}, "the tiny files have none"
    assert prepare(DATA_SETS[name], source, tmp_path / "out", verify=False).domain
    assert tables(tmp_path / "out").events.collect().equals(events)  # not twice


def test_a_folder_of_another_domain_is_left_alone_and_settings_are_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    WRITERS["grocery"](source)
    grocery = DATA_SETS["grocery"]
    prepare(grocery, source, out, verify=False)
    for name in ("tandem.yaml", "experiments.yaml"):
        (out / name).write_text("mine")
    prepare(grocery, source, out, verify=False)
    assert [(out / name).read_text() for name in ("tandem.yaml", "experiments.yaml")] == [
        "mine"
    ] * 2
    (out / "schema.yaml").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="name another folder with --out"):
        prepare(grocery, source, out, verify=False)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "name", "file"), [(n, n, f) for n, f in every_file()], indirect=["source"]
)
@pytest.mark.parametrize("damage", ["pointer", "absent", "empty", "cut gzip", "cut line"])
def test_a_damaged_file_stops_with_its_name_and_writes_nothing(
    source: Path, tmp_path: Path, name: str, file: str, damage: str
) -> None:
    path = at(source, file)
    content = path.read_bytes()
    match damage:
        case "pointer":
            path.write_bytes(POINTER)
        case "absent":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut gzip":
            path.unlink()
            path = path.with_name(f"{path.name}.gz")
            packed = gzip.compress(content)
            path.write_bytes(packed[: len(packed) // 2])
        case "cut line":
            last = content.rstrip(b"\n").rfind(b"\n") + 1
            path.write_bytes(content[: last + 2])
    with pytest.raises(DataError, match=re.escape(file.removesuffix(".csv"))) as error:
        prepare(DATA_SETS[name], source, tmp_path / "out", verify=False)
    expected = {"pointer": "Git LFS pointer", "cut gzip": "truncated or damaged gzip"}
    assert expected.get(damage, "") in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["movielens-tags"], indirect=True)
def test_wrong_checksums_stop_unless_they_are_skipped(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["prepare", "movielens-tags", "--source", str(source), "--out", str(out)]
    refused = runner.invoke(app, command)
    assert refused.exit_code == 1
    assert "train.csv: checksum is md5:" in refused.output
    assert "--skip-checksums" in refused.output
    assert not out.exists()
    done = runner.invoke(app, [*command, "--skip-checksums"])
    assert done.exit_code == 0, done.output
    assert "table: 6 rows: train 3, valid 2, test 1" in done.output
    assert "note: movielens-tags: 3 / 2 / 1 rows, the owner's files have" in done.output
    assert "user: user_id (3)" in done.output
    assert re.search(r"written in [\d.]+ s, peak memory [\d.]+ GB", done.output)


@pytest.mark.parametrize("source", ["ml-1m"], indirect=True)
def test_options_belong_to_their_data_set(source: Path, tmp_path: Path) -> None:
    command = ["prepare", "ml-1m", "--source", str(source), "--out", str(tmp_path / "out")]
    refused = runner.invoke(app, [*command, "--users", "3"])
    assert refused.exit_code == 1
    assert "has no option --users: it takes --split, --seed" in refused.output
    done = runner.invoke(app, [*command, "--split", "random", "--seed", "4"])
    assert done.exit_code == 0, done.output
    assert FieldTable.load(tmp_path / "out" / "table").name == "ml-1m-random"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nonsense"], "unknown data set 'nonsense': one of ml-latest-small, ml-1m"),
        (["criteo-x1"], "pass --source FOLDER with train.csv, valid.csv, test.csv from https://"),
        (["grocery", "--source", "/nonexistent/x"], "/nonexistent/x: is not a folder"),
        (["simulator"], "is generated when it is trained on"),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], sentence: str) -> None:
    result = runner.invoke(app, ["prepare", *arguments])
    assert result.exit_code == 1
    assert sentence in result.output


def test_a_split_with_an_empty_part_stops(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    WRITERS["ml-1m"](source)
    (source / "ratings.dat").write_text("1::1::5::10\n2::2::4::10\n")
    with pytest.raises(DataError, match="the train part of 2 rows is empty"):
        prepare(DATA_SETS["ml-1m"], source, tmp_path / "out", verify=False)


def test_nan_labels_stop_with_file_and_line(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    WRITERS["criteo-x1"](source)
    path = source / "valid.csv"
    lines = path.read_text().splitlines()
    lines[2] = "nan" + lines[2][1:]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"valid\.csv: line 3: label is NaN"):
        prepare(DATA_SETS["criteo-x1"], source, tmp_path / "out", verify=False)


def test_list_shows_every_name_and_what_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ml-1m" / "table").mkdir(parents=True)
    monkeypatch.setattr(cli.console, "_width", 200)
    shown = runner.invoke(app, ["list", "--prepared", str(tmp_path)]).output
    for name in DATA_SETS:
        assert f" {name} " in shown
    assert "shipped with Tandem" in shown
    assert "prepared in" in shown
    assert "1,436,609" in shown
    assert shown.count("prepared in") == 1


def test_row_counts_add_up_to_the_owners_totals() -> None:
    assert sum(DATA_SETS["criteo-x1"].rows) == sum(DATA_SETS["criteo-x4"].rows) == 45_840_617
    assert sum(DATA_SETS["avazu-x1"].rows) == sum(DATA_SETS["avazu-x4"].rows) == 40_428_967
    assert sum(DATA_SETS["taobao-ad-x1"].rows) == 21_929_911 + 3_099_515


def test_damaged_prepared_sequences_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    WRITERS["grocery"](source)
    prepare(DATA_SETS["grocery"], source, tmp_path / "out", verify=False)
    path = tmp_path / "out" / "sequences" / "sequences.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"sequences\.npz: is damaged"):
        load_sequences(path.parent)
    with pytest.raises(DataError, match="is not there"):
        load_sequences(tmp_path)


def test_bundled_data_needs_no_source(tmp_path: Path) -> None:
    made = prepare(datasets.find("ml-latest-small"), None, tmp_path / "out")
    assert made.notes == ()
    assert len(FieldTable.load(tmp_path / "out" / "table")) == 100_836
    assert len(load_sequences(tmp_path / "out" / "sequences").items) == 100_836


def test_the_commands_are_part_of_tandem() -> None:
    from services.cli import app as tandem

    shown = runner.invoke(tandem, ["data", "--help"])
    assert shown.exit_code == 0
    assert "prepare" in shown.output
    assert "list" in shown.output
