"""`tandem train`: settings by name, and one sentence for whatever is wrong."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from models import artifact, cli, registry, serving
from models.configs import ModelConfig
from models.data.datasets import save_sequences
from models.data.sequences import from_events
from models.registry import SettingError, UnknownModel, kind_of, settings
from models.schema.inputs import ITEM
from models.training import ranking, retrieval
from models.training.loop import LoopConfig
from tests.unit.models import synthetic
from tests.unit.models.training.prepared.test_train import small_table


@dataclass(frozen=True)
class _Config:
    num_items: int
    width: int = 8
    rate: float = 0.5
    tower: tuple[int, ...] = (4,)
    kind: Literal["serial", "parallel"] = "serial"
    on: bool = True
    least: float | None = None


def _of(*pairs: str) -> dict[str, object]:
    return settings(pairs, (_Config,))[0]


def test_values_are_read_as_the_fields_types() -> None:
    assert _of(
        "width=16", "rate=1e-3", "tower=128,64", "kind=parallel", "on=false", "least=none"
    ) == {
        "width": 16, "rate": 1e-3, "tower": (128, 64), "kind": "parallel", "on": False,
        "least": None,
    }  # fmt: skip
    assert _of("tower=7", "least=0.25", "on=yes") == {"tower": (7,), "least": 0.25, "on": True}
    assert _of("tower=(7, 8)", "rate=3") == {"tower": (7, 8), "rate": 3.0}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("widht=3", r"'widht' does not exist \(did you mean width\?\); known: kind, least, on, "),
        ("width=3.5", "width: '3.5' is not a whole number"),
        ("rate=fast", "rate: 'fast' is not a number"),
        ("tower=1,x", "tower: '1,x' is not whole numbers separated by commas"),
        ("kind=both", "kind: 'both' is not one of serial, parallel"),
        ("on=2", "on: '2' is not true or false"),
        ("least=x", "least: 'x' is not a number or none"),
        ("width", "'width' has no value: write key=value"),
        ("num_items=5", "num_items: follows from the data"),
    ],
)
def test_a_wrong_setting_names_the_key_and_what_is_accepted(pair: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        _of(pair)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="width is given twice"):
        _of("width=3", "width=4")


@given(
    st.integers(), st.floats(allow_nan=False), st.lists(st.integers(), min_size=1), st.booleans()
)
def test_what_is_written_is_read(width: int, rate: float, tower: list[int], on: bool) -> None:
    texts = [f"width={width}", f"rate={rate!r}", f"tower={','.join(map(str, tower))}", f"on={on}"]
    assert _of(*texts) == {"width": width, "rate": rate, "tower": tuple(tower), "on": on}


@pytest.mark.parametrize("name", list(registry.MODELS))
def test_every_default_can_be_set_as_it_is_shown(name: str) -> None:
    """So the types of all configs are known to the parser, and no key is ambiguous."""
    kind = registry.MODELS[name]
    shown = registry.defaults(kind.config)
    pairs = [f"{key}={cli._text(value)}" for key, value in shown.items()]
    own, loop = settings(pairs, (kind.config, LoopConfig))
    assert own == shown
    assert not loop, "a key of the model is also one of the loop"


def test_every_default_of_the_loop_can_be_set() -> None:
    shown = registry.defaults(LoopConfig)
    pairs = [f"{key}={cli._text(value)}" for key, value in shown.items()]
    assert settings(pairs, (LoopConfig,))[0] == shown


def test_an_unknown_model_names_the_nearest_and_the_others() -> None:
    with pytest.raises(UnknownModel, match=r"did you mean sasrec\?.*ssl_two_tower"):
        kind_of("sasrek")
    with pytest.raises(UnknownModel, match="'masknet' is a ranking model; retrieval models: ssl_"):
        kind_of("masknet", "retrieval")


def size_of_items(config: ModelConfig) -> int:
    """How many ids of items the model has, with 0."""
    return next(i.size for i in config.reads.schema.inputs if i.name == ITEM)


def test_the_registry_has_every_model_once() -> None:
    assert len(registry.names("retrieval")) == 8
    assert len(registry.names("ranking")) == 11
    assert kind_of("mc_mlcc").configure().channels > 1
    assert kind_of("mlcc").configure().channels == 1
    data = synthetic.dataset(users=20)
    for name in registry.names("retrieval"):
        config = retrieval.model_config(data.schema, data.items, name)
        assert size_of_items(config) == 1 + len(data.items)
        assert getattr(config.settings, "num_items", len(data.items)) == len(data.items)
        own = {f.name for f in fields(kind_of(name).config)}
        assert own.issuperset(retrieval.SETTINGS.get(name, {}))
    for name in registry.names("ranking"):
        config = ranking.model_config(data.schema, data.items, name)
        assert size_of_items(config) == 1 + len(data.items)


# The command.


def _write(folder: Path, ratings: Sequence[str], header: str | None = None) -> Path:
    """A MovieLens folder with these rating lines."""
    folder.mkdir(exist_ok=True)
    source = synthetic.movielens(users=30)
    files = {
        "ratings": "\n".join([header or "userId,movieId,rating,timestamp", *ratings]) + "\n",
        "movies": source.movies.write_csv(),
        "tags": source.tags.write_csv(),
    }
    for name, text in files.items():
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ratings = synthetic.movielens(users=30).ratings.write_csv().splitlines()[1:]
    return _write(tmp_path / "films", ratings)


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "300"})


def test_a_model_with_settings_is_trained_measured_published_and_loads(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "artifacts"
    result = _run(
        "retrieval", "--model", "youtube_dnn", "--data", folder, "--artifacts", out,
        "--set", "width=8", "--set", "negatives=50", "--epochs", 1, "--seed", 3,
        "--checkpoint", tmp_path / "checkpoints",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("popularity", "markov", "item_knn", "ease", "youtube_dnn", "examples/s"):
        assert words in result.output
    loaded = serving.load_retrieval(artifact.current(out, "youtube_dnn"))
    assert loaded.item_vectors.shape[1] == 8
    assert loaded.model.config()["negatives"] == 50
    again = _run(
        "retrieval", "--model", "youtube_dnn", "--data", folder, "--artifacts", out,
        "--checkpoint", tmp_path / "checkpoints",
    )  # fmt: skip
    assert again.exit_code == 1
    assert "--resume" in again.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "masknut"], "did you mean masknet?"),
        (["--model", "sasrec"], "is a retrieval model"),
        (["--set", "unit=3"], "did you mean units?"),
        (["--set", "learning_rate=-1"], "learning_rate must be positive"),
        (["--precision", "fp8"], "precision: 'fp8' is not one of fp32, bf16"),
        (["--device", "gpu"], "--device gpu: is not cpu, cuda or cuda:N"),
        (["--data", "nowhere"], "neither ml-latest-small nor a folder nor one of ml-latest-small"),
        (["--data", "amazon-beauty"], "holds sequences only, and a ranking model learns from a"),
        (["--out", "somewhere"], "--out: belongs to prepared data sets"),
        (["--resume"], "--resume needs --checkpoint"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_sentence(arguments: list[str], words: str) -> None:
    result = _run("ranking", *arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


GOOD = [f"{user},{1 + (7 * user + k) % 160},4.0,{1000 + 50 * k + user}" for user in range(1, 31)
        for k in range(10)]  # fmt: skip


@pytest.mark.parametrize(
    ("ratings", "header", "words"),
    [
        ([*GOOD, "1,2,NaN,5"], None, "ratings.csv.gz"),
        ([*GOOD, "1,2,9,5"], None, "line 302: rating 9.0 is not in 0.5..5"),
        (GOOD, "userId,movieId,stars,timestamp", "no column 'rating'"),
        (GOOD[:1], None, "leaves one side empty"),
        (GOOD, None, "the training split has nothing without a like"),  # every rating is a like
        ([*GOOD, "1,999999,4.0,100"], None, "999999"),
    ],
    ids=["nan", "range", "column", "split", "one class", "unknown item"],
)
def test_bad_data_stops_the_training_with_a_sentence(
    ratings: list[str], header: str | None, words: str, tmp_path: Path
) -> None:
    data = _write(tmp_path / "films", ratings, header)
    result = _run("ranking", "--model", "fm", "--data", data, "--artifacts", tmp_path / "out")
    assert result.exit_code == 1
    assert words in result.output
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "out").exists()


def _rated(*events: tuple[int, int, int]) -> list[str]:
    """Ratings lines of (user, film, time); likes in turn."""
    return [f"{u},{i},{4.0 if n % 2 else 2.0},{t}" for n, (u, i, t) in enumerate(events)]


ONE_ITEM = _rated(*((user, 5, 1000 + user) for user in range(60)))
ALL_RATE_ALL = _rated(*((u, i, 1000 + 37 * i + u) for u in (1, 2, 3) for i in range(1, 61)))
NEW_ITEMS = _rated(*((u, 1 + (7 * u + k) % 60 + 60 * (k > 7), 1000 + 9000 * (k > 7) + 50 * k + u)
                     for k in range(10) for u in range(30)))  # fmt: skip
ONCE = _rated(*((item % 7, item, 1000 + item) for item in range(1, 161)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("part", "ratings", "words"),
    [
        ("ranking", ONE_ITEM, "the training split has no negatives: its users have chosen every"),
        ("ranking", ALL_RATE_ALL, "the training split has no negatives"),
        ("ranking", NEW_ITEMS, "no click of the test split is of an item known before"),
        ("ranking", ONCE, "no click of the training split is of an item known before"),
        ("retrieval", NEW_ITEMS, "no user of the test split has a target in the catalogue"),
        ("retrieval", ONCE, "no user of the test split has a target in the catalogue"),
    ],
    ids=["one item", "all rate all", "new items", "each once", "new items", "each once"],
)
def test_data_that_leave_nothing_to_learn_or_measure_are_refused(
    part: str, ratings: list[str], words: str, tmp_path: Path
) -> None:
    data = _write(tmp_path / "films", ratings)
    result = _run(part, "--data", data, "--artifacts", tmp_path / "out", "--epochs", 1)
    assert result.exit_code == 1
    assert words in result.output
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "out").exists()


# Prepared data.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared data set: a table, and walks on a circle of 24 items."""
    small_table().save(tmp_path / "toy" / "table")
    user, step = np.divmod(np.arange(400), 10)
    save_sequences(from_events("toy", user, (7 * user + step) % 24), tmp_path / "toy" / "sequences")
    return tmp_path / "toy"


def test_a_ranking_model_is_trained_on_a_table(data: Path, tmp_path: Path) -> None:
    result = _run(
        "ranking", "--model", "fm", "--data", data, "--epochs", 1, "--set", "width=4",
        "--set", "l2=1e-6", "--out", tmp_path / "out", "--artifacts", tmp_path / "artifacts",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in (
        "fm",
        "one-hot LR",
        "95 % interval",
        "click auc: fm - one-hot LR",
        "Not servable",
    ):
        assert words in result.output
    assert (tmp_path / "out" / "weights.safetensors").is_file()
    assert not (tmp_path / "artifacts").exists()


def test_a_retrieval_model_is_trained_on_sequences(data: Path, tmp_path: Path) -> None:
    result = _run(
        "retrieval", "--model", "youtube_dnn", "--data", data, "--protocol", "last-fifth",
        "--epochs", 1, "--set", "width=4", "--set", "negatives=8", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("youtube_dnn", "popularity", "markov", "last-fifth", "Not servable"):
        assert words in result.output


@pytest.mark.parametrize(
    ("part", "arguments", "words"),
    [
        ("retrieval", ["--protocol", "random"], "--protocol random: is not one of user-split, lea"),
        ("retrieval", ["--set", "widht=3"], "'widht' does not exist (did you mean width?)"),
        ("retrieval", ["--set", "valid_metric=auc"], "valid_metric 'auc' is not recall@N"),
        ("retrieval", ["--workers", "2"], "--workers: a training on sequences"),
        ("retrieval", ["--set", "steps=0"], "steps must be at least 1"),
        ("ranking", ["--set", "l2=-1"], "l2 must not be negative"),
        ("ranking", ["--model", "sasrec"], "is a retrieval model"),
        ("ranking", ["--set", "num_items=3"], "'num_items' does not exist"),
        ("all", [], "has no schema.yaml, by which models are served"),
    ],
)
def test_what_is_wrong_with_a_training_on_prepared_data_is_one_sentence(
    part: str, arguments: list[str], words: str, data: Path, tmp_path: Path
) -> None:
    out = [] if part == "all" else ["--out", tmp_path / "out"]
    result = _run(part, "--data", data, *out, *arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "out").exists()


def test_damaged_and_missing_parts_are_named(data: Path, tmp_path: Path) -> None:
    labels = data / "table" / "labels.npy"
    labels.write_bytes(labels.read_bytes()[:-4])
    result = _run("ranking", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "labels.npy: checksum differs" in result.output
    shutil.rmtree(data / "table")
    result = _run("ranking", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "toy: holds sequences only, and a ranking model learns from a table" in result.output


def test_an_unknown_kind_of_model_is_a_usage_error() -> None:
    result = _run("reranking", "--data", "simulator")
    assert result.exit_code == 2
    assert "No such command 'reranking'" in result.output
