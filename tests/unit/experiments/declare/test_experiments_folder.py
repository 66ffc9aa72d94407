"""Several files: one configuration, errors that name the files, and a reload that follows all."""

from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.cli.experiments import app
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsConfig, ExperimentsError
from tests.domains import FILMS


def layer(name: str, parameter: str, experiment: str, traffic: int = 100) -> str:
    return f"""\
version: 1
layers:
  - name: {name}
    parameters: [{parameter}]
    experiments:
      - name: {experiment}
        traffic: {traffic}
        arms: [{{name: a, weight: 50}}, {{name: b, weight: 50}}]
"""


VALUE = layer("value", "rerank.diversity", "mix")
DEPTH = layer("depth", "retrieval.num_candidates", "deep")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "experiments"
    path.mkdir()
    (path / "20-value.yaml").write_text(VALUE)
    (path / "10-depth.yaml").write_text(DEPTH)
    return path


def lines_of(folder: Path) -> list[str]:
    with pytest.raises(ExperimentsError) as caught:
        config_reader.load(folder, FILMS)
    return caught.value.lines()


def refused() -> float:
    return (
        REGISTRY.get_sample_value("tandem_experiments_reloads_total", {"outcome": "refused"}) or 0
    )


def ok() -> float | None:
    return REGISTRY.get_sample_value("tandem_experiments_file_ok")


def test_layers_are_merged_in_the_order_of_the_file_names(folder: Path) -> None:
    assert [layer.name for layer in config_reader.load(folder, FILMS).layers] == ["depth", "value"]


def test_a_folder_is_the_same_as_one_file_with_all_layers(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.yaml"
    one.write_text(DEPTH + VALUE.partition("layers:\n")[2])
    assert config_reader.load(folder, FILMS) == config_reader.load(one, FILMS)


def test_other_and_hidden_files_and_folders_are_left_out(folder: Path) -> None:
    before = config_reader.load(folder, FILMS)
    (folder / "README.md").write_text("not YAML: [")
    (folder / ".10-depth.yaml.swp.yaml").write_text("[")
    (folder / "old.yaml").mkdir()
    assert config_reader.load(folder, FILMS) == before


def test_an_error_names_its_file(folder: Path) -> None:
    (folder / "20-value.yaml").write_text(VALUE.replace("traffic: 100", "traffic: 101"))
    (folder / "30-more.yaml").write_text("version: 2\nlayers: []\n")
    first, second = lines_of(folder)
    assert first.startswith(f"{folder}/20-value.yaml:7: layers[0].experiments[0].traffic: ")
    assert second.startswith(f"{folder}/30-more.yaml:1: version: ")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (layer("value", "rerank.like_weight", "e"), 3, "layers[0] of 20-value.yaml has the same"),
        (
            layer("other", "rerank.like_weight", "mix"),
            6,
            "layers[0].experiments[0] of 20-value.yaml has the same name 'mix'",
        ),
        (
            layer("other", "rerank.diversity", "e"),
            4,
            "layer 'value' of 20-value.yaml already owns 'rerank.diversity'",
        ),
        (
            layer("other", "rerank.like_weight", "e\n        salt: mix"),
            7,
            "layers[0].experiments[0] of 20-value.yaml has the same salt 'mix'",
        ),
    ],
)
def test_what_must_be_unique_is_unique_across_files(
    folder: Path, text: str, line: int, reason: str
) -> None:
    (folder / "30-other.yaml").write_text(text)
    (message,) = lines_of(folder)
    assert message.startswith(f"{folder}/30-other.yaml:{line}: ")
    assert reason in message


def test_two_holdouts_are_refused_even_when_they_agree(folder: Path) -> None:
    for name in ("20-value.yaml", "10-depth.yaml"):
        with (folder / name).open("a") as file:
            file.write("holdout: {percent: 5}\n")
    (message,) = lines_of(folder)
    assert message.startswith(f"{folder}/20-value.yaml:9: holdout: 10-depth.yaml has a holdout")


def test_a_folder_without_files_is_refused_and_says_how_to_run_nothing(tmp_path: Path) -> None:
    (message,) = lines_of(tmp_path)
    assert "no *.yaml file" in message
    (tmp_path / "none.yaml").write_text("version: 1\nlayers: []\n")
    assert config_reader.load(tmp_path, FILMS) == ExperimentsConfig()


def test_a_change_of_any_file_a_new_one_and_a_removed_one_are_followed(folder: Path) -> None:
    file = ExperimentsFile(folder, FILMS)
    (folder / "20-value.yaml").write_text(layer("value", "rerank.diversity", "mix", traffic=1))
    file.reload_if_changed()
    value = file.assigner().config.layers[1]
    assert value.experiments[0].arms[0].traffic == 1
    (folder / "15-more.yaml").write_text(layer("more", "rerank.like_weight", "weight"))
    file.reload_if_changed()
    assert [x.name for x in file.assigner().config.layers] == ["depth", "more", "value"]
    (folder / "10-depth.yaml").unlink()
    file.reload_if_changed()
    assert [x.name for x in file.assigner().config.layers] == ["more", "value"]
    assert ok() == 1


def test_one_bad_file_keeps_the_last_good_whole_in_force(folder: Path) -> None:
    file = ExperimentsFile(folder, FILMS)
    before, count = file.assigner(), refused()
    (folder / "10-depth.yaml").write_text(layer("depth", "retrieval.num_candidates", "deep", 5))
    (folder / "20-value.yaml").write_text("version: 1\nlayers: [")
    for _ in range(3):
        file.reload_if_changed()
    assert file.assigner() is before  # not even the good file's change
    assert (refused(), ok()) == (count + 1, 0)
    (folder / "20-value.yaml").write_text(VALUE)
    file.reload_if_changed()
    assert file.assigner().config.layers[0].experiments[0].arms[0].traffic == 5
    assert ok() == 1


def test_moving_an_experiment_to_another_file_moves_no_user(folder: Path) -> None:
    file = ExperimentsFile(folder, FILMS)
    before = file.assigner()
    (folder / "20-value.yaml").rename(folder / "05-value.yaml")
    file.reload_if_changed()
    after = file.assigner()
    assert after is not before
    for user in map(str, range(200)):
        arms = [
            {(a.experiment, a.arm) for a in assigner.assign(user, now_ms=0).assignments}
            for assigner in (before, after)
        ]
        assert arms[0] == arms[1]


def test_a_change_that_would_move_users_is_refused_with_its_file(folder: Path) -> None:
    new = folder.with_name("new")
    new.mkdir()
    (new / "value.yaml").write_text(
        VALUE.replace("a, weight: 50", "a, weight: 60").replace("b, weight: 50", "b, weight: 40")
    )
    result = CliRunner().invoke(app, ["validate", str(new), "--running", str(folder)])
    assert result.exit_code == 1
    assert result.output.startswith(f"{new}/value.yaml:6: experiment mix: ")


def test_a_folder_exchanged_by_its_symbolic_link_is_never_taken_half_and_half(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a ConfigMap is mounted: the link is turned after the first of two files was read."""
    new = folder.with_name("new")
    new.mkdir()
    (new / "20-value.yaml").write_text(layer("value", "rerank.diversity", "mix", 7))
    (new / "10-depth.yaml").write_text(layer("depth", "retrieval.num_candidates", "deep", 7))
    link = folder.with_name("link")
    link.symlink_to(folder)
    read_bytes, turned = Path.read_bytes, []

    def turn_after_the_first(path: Path) -> bytes:
        data = read_bytes(path)
        if not turned:
            link.unlink()
            link.symlink_to(new)
            turned.append(path.name)
        return data

    monkeypatch.setattr(Path, "read_bytes", turn_after_the_first)
    config = config_reader.load(link, FILMS)
    assert turned == ["10-depth.yaml"]
    assert [e.arms[0].traffic for _, e in config.experiments()] == [7, 7]


def test_an_emptied_folder_and_a_missing_one_keep_the_last_good_in_force(folder: Path) -> None:
    file = ExperimentsFile(folder, FILMS)
    before, count = file.assigner(), refused()
    for path in folder.iterdir():
        path.unlink()
    file.reload_if_changed()
    folder.rmdir()
    file.reload_if_changed()
    assert file.assigner() is before
    assert (refused(), ok()) == (count + 2, 0)


def test_another_salt_of_the_holdout_is_refused_and_a_larger_percentage_is_not(
    folder: Path,
) -> None:
    holdout = folder / "00-holdout.yaml"
    text = "version: 1\nlayers: []\nholdout: {{percent: {}, salt: {}}}\n"
    holdout.write_text(text.format(5, "out"))
    file = ExperimentsFile(folder, FILMS)
    holdout.write_text(text.format(50, "out"))
    file.reload_if_changed()
    assert (ok(), file.assigner().config.holdout.percent) == (1, 50)
    holdout.write_text(text.format(50, "other"))
    file.reload_if_changed()
    assert (ok(), file.assigner().config.holdout.salt) == (0, "out")
