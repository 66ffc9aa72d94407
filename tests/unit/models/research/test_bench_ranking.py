"""The ranking benchmark: all models alike, what is measured is kept as long as it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from models.data.errors import DataError
from models.data.tables import Field, FieldTable, HistoryField
from models.layers.embedding_tables import EmbeddingTables
from models.ranking.dnn import DNNConfig
from models.ranking.logistic_regression import LinearTerm
from models.registry import MODELS as KINDS
from models.registry import kind_of
from models.research import bench_ranking as bench
from models.research.comparison import check_alike
from models.research.ranking_settings import (
    AXES,
    OWN_AXES,
    SETTINGS,
    STRENGTHS,
    departures,
    trials_of,
)
from models.research.ranking_tables import BENCHMARKS, ONE_HOT, ORACLE, Benchmark, Entry
from models.training.prepared.tables import build, schema_of
from models.training.results import ModelResult, load_all

MODELS = BENCHMARKS["simulator-ranking"].entries
OURS = [e for e in MODELS if e.label in ("MaskNet", "MC-MLCC", "INFNet")]
ABLATIONS = BENCHMARKS["simulator-ablations"].entries
MASKNET_SIZES = BENCHMARKS["simulator-masknet-sizes"].entries
NETWORKS = [e for e in MODELS if e.model != ONE_HOT]
SMALL = Benchmark("simulator", "toy", (Entry("FM", "fm"), Entry("LR one-hot", ONE_HOT)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _table(rows: int = 700) -> FieldTable:
    rng = np.random.default_rng(0)
    user, item = rng.integers(1, 9, rows), rng.integers(1, 13, rows)
    click = rng.random(rows) < np.where(user < item, 0.8, 0.2)
    return FieldTable(
        "toy", (Field("user", 9, "user"), Field("item", 13, "item")),
        np.stack([user, item], axis=1).astype(np.int32), (), np.zeros((rows, 0), np.float32),
        ("click",), click[:, None].astype(np.float32), np.ones((rows, 1), bool),
        user.astype(np.int32), np.arange(rows, dtype=np.int64),
        np.repeat([0, 1, 2], [rows - 300, 100, 200]).astype(np.int8),
        history={"past": HistoryField(rng.integers(1, 13, (rows, 3)).astype(np.int32), "item")},
    ).check()  # fmt: skip


def _data(table: FieldTable | None = None, train_rows: int = 0) -> bench.Data:
    table = table or _table()
    return bench.prepare(table, table.labels * 0.6 + 0.2, train_rows, history=2)


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda e: e.label)
def test_all_models_have_embeddings_of_one_width(entry: Entry) -> None:
    spec = bench.spec_of(entry, trials_of(entry.model, 1)[0], 1, 64)
    model = build(schema_of(_table()), spec, 0)
    linear = {id(m.tables) for m in model.modules() if isinstance(m, LinearTerm)}
    tables = [m for m in model.modules() if isinstance(m, EmbeddingTables)]
    assert tables
    assert {m.width for m in tables if id(m) not in linear} <= {bench.WIDTH}
    assert entry.model == "logistic_regression" or len(tables) > len(linear)


def test_the_first_trials_span_the_search_for_every_model() -> None:
    l2 = [values[AXES.index("l2")] for values in SETTINGS[:6]]
    assert (min(l2), max(l2)) == (1e-6, 1e-2)
    assert len(STRENGTHS) == len(SETTINGS)
    for n, values in enumerate(SETTINGS):
        trials = [bench.spec_of(e, trials_of(e.model, n + 1)[n], 1, 64) for e in NETWORKS]
        assert {trial.l2 for trial in trials} == {values[1]}


def test_a_switch_of_one_model_costs_it_no_trial_and_is_tried_in_every_form_alike() -> None:
    for trials in range(1, len(SETTINGS) + 1):
        assert {len(trials_of(e.model, trials)) for e in NETWORKS} == {trials}
    for model, axes in OWN_AXES.items():
        assert {len(forms) for forms in axes.values()} == {len(SETTINGS)}
        entry = next(e for e in NETWORKS if e.model == model)
        for trials in range(2, len(SETTINGS) + 1, 2):
            specs = [bench.spec_of(entry, v, 1, 64) for v in trials_of(model, trials)]
            for name in axes:
                counts = Counter(spec.settings[name] for spec in specs)
                assert len(counts) == 2
                assert len(set(counts.values())) == 1


def test_the_search_of_masknet_chooses_its_embedding_norm_on_validation(tmp_path: Path) -> None:
    path = tmp_path / "masknet.json"
    entry = Entry("MaskNet", "masknet")
    best = bench.chosen(_data(), entry, path, 2, 1, 64)
    found = json.loads(path.read_text())
    assert found["axes"] == [*AXES, "emb_norm"]
    assert {each["values"][-1] for each in found["tried"]} == {"field", "off"}
    aucs = {each["values"][-1]: each["validation_auc"] for each in found["tried"]}
    assert best[-1] == max(aucs, key=lambda form: aucs[form])
    assert bench.spec_of(entry, best, 1, 64).settings["emb_norm"] == best[-1]
    assert bench.chosen(_data(), entry, path, 2, 1, 64) == best


def test_our_models_are_compared_with_all_references_and_no_model_with_itself() -> None:
    for benchmark in BENCHMARKS.values():
        labels = {e.label for e in benchmark.entries}
        for entry in benchmark.entries:
            references = benchmark.references_of(entry)
            assert set(references) <= labels
            assert entry.family or entry.label not in references
            if entry in OURS:
                assert references == ("DeepFM", "DCN-V2", "LR", "MMoE")


VARIANTS = (*ABLATIONS, *MASKNET_SIZES)


@pytest.mark.parametrize("entry", VARIANTS, ids=lambda e: e.label)
def test_every_variant_is_a_network_and_keeps_its_switches_whatever_was_chosen(
    entry: Entry,
) -> None:
    """The paper's MaskNet norms its embeddings also where the search has found it better not to."""
    for values in trials_of(entry.model, 2):
        spec = bench.spec_of(entry, values, 1, 64)
        assert spec.settings.items() >= entry.settings.items()
    model = build(schema_of(_table()), spec, 0)
    assert asdict(model.settings).items() >= entry.settings.items()
    assert model(_data().tensors.batch(np.arange(8))).isfinite().all()


def test_the_ablations_of_the_specification_are_there_each_beside_its_full_form() -> None:
    benchmark = BENCHMARKS["simulator-ablations"]
    references = {e.label: benchmark.references_of(e) for e in benchmark.entries}
    for less in ("mask", "LN", "FFN"):
        assert references[f"MaskNet without {less}"] == ("MaskNet full",)
        assert references[f"MaskNet serial without {less}"] == ("MaskNet serial",)
    for less in ("task tokens", "PGU", "cross attention"):
        assert references[f"INFNet without {less}"] == ("INFNet full",)
    sizes = {e.label for e in MASKNET_SIZES}
    assert {f"MaskNet r={r}" for r in range(2, 6)} < sizes
    assert {f"MaskNet blocks={n}" for n in (1, 5, 7, 9)} < sizes
    assert {f"MaskNet k={k}" for k in (10, 20, 30, 50, 80)} < sizes


def test_two_variants_of_a_table_are_never_the_same_training() -> None:
    for benchmark in BENCHMARKS.values():
        trained = [e for e in benchmark.entries if e.model != ONE_HOT]
        documents = [
            json.dumps(bench.spec_of(e, trials_of(e.model, 1)[0], 1, 64).document(), default=str)
            for e in trained
        ]
        assert len(set(documents)) == len(documents)


def test_notes_tell_what_differs_from_the_specification_and_from_what_is_served() -> None:
    def note(entry: Entry) -> str:
        return bench.note_on(entry, bench.spec_of(entry, trials_of(entry.model, 1)[0], 1, 64))

    notes = {e.model: note(e) for e in OURS}
    assert "units 128 (specification 400, served 256)" in notes["masknet"]
    assert "channel_width 4 (specification 16, served 16)" in notes["mlcc"]
    assert "own_history false (specification true, served true)" in notes["infnet"]
    for found in notes.values():
        assert "dropout" not in found
        assert "emb_norm" not in found
    assert [note(e) for e in NETWORKS if e not in OURS] == [""] * 7
    assert "reduction" not in note(Entry("MaskNet r=2", "masknet", {"reduction": 2.0}))
    fixed = {e.label: note(e).rpartition("; ")[2] for e in ABLATIONS if e.model == "masknet"}
    assert fixed["MaskNet full"] == "emb_norm field whatever the search chose"
    assert fixed["MaskNet serial without LN"] == "emb_norm off whatever the search chose"
    official = {"channels": 4, "channel_width": 16}
    assert note(Entry("MC-MLCC S=4", "mlcc", official)) == ""


def test_a_note_changes_with_the_settings() -> None:
    assert departures("mlcc", {"channel_width": 16, "heads": 4}) == ""
    assert "heads 2 (specification 4, served 4)" in departures("mlcc", {"heads": 2})
    assert departures("mlcc", {"heads": 2}, named=["heads"]) == ""
    assert "tower 8-4" in departures("mlcc", {"tower": (8, 4)})


def test_ids_outside_the_kept_rows_are_unknown_in_all_parts() -> None:
    """Of the newest 5 training rows: an id that they lack appears nowhere."""
    table = _table()
    data = _data(table, train_rows=5)
    kept = data.tensors.table
    assert (kept.split == 0).sum() == 5
    rows = table.rows("train")[-5:]
    users = set(table.categorical[rows, 0])
    items = set(table.categorical[rows, 1]) | set(table.history["past"].ids[rows, :2].ravel())
    assert set(np.unique(kept.categorical[:, 0])) == users | {0}
    assert set(np.unique(kept.categorical[:, 1])) == items | {0}
    assert set(np.unique(kept.history["past"].ids)) <= items | {0}
    assert kept.history["past"].ids.shape[1] == 2
    assert data.oracle is not None
    assert len(data.oracle) == len(kept)


def _plan(folder: Path, **changes: object) -> bench.Plan:
    return replace(bench.Plan(folder, range(1, 2), 2, 1, 64), **changes)  # type: ignore[arg-type]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the rows that were measured, in order."""
    monkeypatch.setitem(BENCHMARKS, "toy", SMALL)
    labels: list[str] = []
    for name in ("measure", "measure_one_hot"):
        real = getattr(bench, name)

        def record(data, row, *more, real=real):  # type: ignore[no-untyped-def]
            labels.append(row.entry.label)
            return real(data, row, *more)

        monkeypatch.setattr(bench, name, record)
    return labels


def test_a_result_is_measured_again_only_when_something_differs(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, both = _data(), ["FM", "LR one-hot"]
    _plan(tmp_path).run(data, "toy", ())
    assert trained == both
    _plan(tmp_path).run(_data(), "toy", ())
    assert trained == both, "nothing differs"

    def again(data: bench.Data, expected: list[str], **changes: object) -> None:
        trained.clear()
        _plan(tmp_path, **changes).run(data, "toy", ())
        assert trained == expected

    again(data, ["FM"], seeds=range(1, 3))
    again(data, ["FM"], seeds=range(1, 3), epochs=2)
    again(data, both, seeds=range(1, 3), epochs=2, trials=3)
    settings = {"seeds": range(1, 3), "epochs": 2, "trials": 3}
    again(_data(train_rows=300), both, **settings)
    table = _table()
    labels = table.labels.copy()
    labels[-1] = 1 - labels[-1]
    again(_data(replace(table, labels=labels)), both, **settings)
    again(_data(replace(table, labels=labels)), [], **settings)
    monkeypatch.setattr(bench, "WIDTH", 8)
    again(_data(replace(table, labels=labels)), ["FM"], **settings)


def test_a_search_is_repeated_when_a_default_of_the_model_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, entry = _data(), Entry("DNN", "dnn")
    path = tmp_path / "dnn.json"
    first = bench.chosen(data, entry, path, 2, 1, 64)
    assert first in SETTINGS[:2]
    before = path.stat().st_mtime_ns
    assert bench.chosen(data, entry, path, 2, 1, 64) == first
    assert path.stat().st_mtime_ns == before

    class Narrow(DNNConfig):
        def __init__(self, **settings: object) -> None:
            super().__init__(**{"hidden": (8,), **settings})  # type: ignore[arg-type]

    monkeypatch.setitem(KINDS, "dnn", replace(kind_of("dnn"), config=Narrow))
    bench.chosen(data, entry, path, 2, 1, 64)
    assert path.stat().st_mtime_ns > before
    tried = json.loads(path.read_text())["asked"]["specs"]
    assert [spec["settings"]["hidden"] for spec in tried] == [[8], [8]]


def test_searches_lie_inside_the_results_and_results_get_one_pass_of_latencies(
    tmp_path: Path, trained: list[str]
) -> None:
    _plan(tmp_path / "out").run(_data(), "toy", ())
    assert {p.parts[len(tmp_path.parts)] for p in tmp_path.rglob("*")} == {"out"}
    searched = tmp_path / "out" / "toy" / "search"
    assert sorted(p.name for p in searched.iterdir()) == ["fm.json", "lr-one-hot.json"]
    fm = ModelResult.load(tmp_path / "out" / "toy" / "fm.json")
    assert fm.latency_ms is not None
    assert fm.latency_ms > 0
    assert "in turn" in fm.notes
    assert ModelResult.load(tmp_path / "out" / "toy" / "lr-one-hot.json").latency_ms is None


def test_a_saved_row_of_ours_has_its_note_before_that_on_its_latency(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Benchmark("simulator", "toy", (Entry("MaskNet", "masknet"),))
    monkeypatch.setitem(BENCHMARKS, "toy", ours)
    notes = []
    for _ in range(2):  # the second run finds the first one's result
        _plan(tmp_path).run(_data(), "toy", ())
        notes.append(ModelResult.load(tmp_path / "toy" / "masknet.json").notes)
    assert trained == ["MaskNet"]
    assert notes[0] == notes[1]
    differs, latency = notes[0].split("; ")
    assert differs.startswith("settings that differ elsewhere: ")
    assert latency.startswith("latency of ")


def test_a_table_of_small_differences_is_left_out_with_one_seed_unless_named(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "toy", replace(SMALL, several_seeds=True))
    _plan(tmp_path).run(_data(), "toy", ())
    assert trained == []
    assert not list(tmp_path.iterdir())
    _plan(tmp_path).run(_data(), "toy", ["FM"])
    _plan(tmp_path, seeds=range(1, 3)).run(_data(), "toy", ())
    assert trained == ["FM", "FM", "LR one-hot"]


def test_the_rows_of_a_table_are_alike(tmp_path: Path, trained: list[str]) -> None:
    """The report takes them; a row that was measured on other rows it refuses."""
    _plan(tmp_path).run(_data(), "toy", ())
    assert {r.model for r in load_all(tmp_path)} == {"Oracle", "FM", "LR one-hot"}
    check_alike(load_all(tmp_path))
    _plan(tmp_path).run(_data(train_rows=300), "toy", ["FM"])
    with pytest.raises(DataError, match="differ"):
        check_alike(load_all(tmp_path))


def test_the_oracle_is_written_when_named(tmp_path: Path, trained: list[str]) -> None:
    _plan(tmp_path).run(_data(), "toy", ["FM"])
    assert not (tmp_path / "toy" / "oracle.json").exists()
    _plan(tmp_path).run(_data(), "toy", [ORACLE])
    assert trained == ["FM"]
    found = ModelResult.load(tmp_path / "toy" / "oracle.json")
    assert found.metrics["click auc"] == (1.0,), "its probabilities were made of the labels"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["simulator-ranking", "--models", "FM,MLCC"], "no model 'MLCC'"),
        (["simulator-rankings"], "no table"),
        (["ml-1m-time-split", "--models", "Oracle, MaskNet full"], "MaskNet full"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_read(
    arguments: list[str], complaint: str
) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(bench.main)
    found = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    assert found.exit_code == 2
    assert complaint in found.output


def test_a_saved_command_names_no_path_of_this_machine() -> None:
    words = ["/a/python", "-m", "load_tests.x", "--data-dir", "/home/me", "t", "--output", "/b"]
    assert bench._command(words) == "python -m load_tests.x --data-dir DATA t --output RESULTS"
