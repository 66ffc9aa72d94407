"""Tables, plots and model cards say what the result files say, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.data.errors import DataError
from models.evaluate_cli import evaluate
from models.training import cards, tables_report
from models.training.results import ModelResult
from models.training.tables_report import (
    gain_table,
    gain_text,
    metric_table,
    quantity,
    render,
    result_tables,
    spread,
)

USERS = 60


def result(
    model: str, gain: float = 0.0, seeds: int = 3, metric: str = "recall@50", **more: object
) -> ModelResult:
    ease = np.random.default_rng(7).random(USERS)
    units = [ease + gain + 0.01 * seed for seed in range(seeds)]
    base = ModelResult(
        table="beauty", data="amazon-beauty", protocol="user split", model=model,
        settings={"d": 64}, seeds=tuple(range(seeds)),
        metrics={metric: tuple(float(u.mean()) for u in units), "coverage": (0.25,) * seeds},
        per_unit={metric: units}, parameters=793_476, dense_parameters=18_948,
        flops_per_row=353_280.0, latency_ms=1.234, train_seconds=(60.0,) * seeds, machine="box",
        command="make bench-models", notes="", created="2026-01-02",
    )  # fmt: skip
    return replace(base, **more)


def test_the_best_model_stands_first_and_its_best_values_are_bold() -> None:
    table = result_tables([result("MIND"), result("HCN-R", gain=0.2)])[0]
    assert [r.result.model for r in table.rows] == ["HCN-R", "MIND"]
    best, other = metric_table(table, table.metrics)[2:]
    assert f"**{spread(table.rows[0].result.metrics['recall@50'])}**" in best
    assert "**" not in other
    assert "**0.2500" not in best  # coverage is described, not judged


def test_of_a_loss_the_smallest_is_best_and_a_gain_is_still_positive() -> None:
    results = [result("FM", 0.2, metric="log_loss"), result("MaskNet", metric="log_loss")]
    table = result_tables(results, {"beauty": "FM"})[0]
    first = table.rows[0]
    assert first.result.model == "MaskNet"
    assert first.difference is not None
    assert first.difference.interval.mean == pytest.approx(0.2)
    assert (first.difference.seeds_won, first.difference.seeds) == (3, 3)


def test_the_gain_is_over_the_named_model_then_the_tables_then_the_best() -> None:
    control = result("HCN-R, K=1", 0.1)
    named = result("HCN-R", 0.2, reference="HCN-R, K=1")
    plain = result("MIND")
    rows = {r.result.model: r.difference for r in result_tables([named, control, plain])[0].rows}
    assert rows["HCN-R"] is not None
    assert rows["HCN-R"].reference == "HCN-R, K=1"
    assert rows["HCN-R"].interval.mean == pytest.approx(0.1)
    assert rows["MIND"] is not None
    assert rows["MIND"].reference == "HCN-R"
    rows = {
        r.result.model: r.difference
        for r in result_tables([named, control, plain], {"beauty": "MIND"})[0].rows
    }
    assert rows["MIND"] is None
    assert rows["HCN-R, K=1"] is not None
    assert rows["HCN-R, K=1"].reference == "MIND"


def test_gains_are_shown_for_every_metric_that_users_have_values_of() -> None:
    def two(model: str, gain: float) -> ModelResult:
        one, log_loss = result(model, gain), result(model, 2 * gain, metric="log_loss")
        return replace(
            one,
            metrics=one.metrics | log_loss.metrics,
            per_unit={**one.per_unit, **log_loss.per_unit},
        )

    table = result_tables([two("HCN-R", 0.2), two("MIND", 0.1)], {"beauty": "MIND"})[0]
    head, _, hcn, mind = gain_table(table)
    assert head == "| model | log_loss |"
    assert hcn.startswith("| HCN-R over MIND | -0.2000 [")
    assert hcn.endswith("0/3 seeds |")
    assert mind == "| MIND | - |"


def test_a_baseline_without_seeds_is_compared_with_every_seed() -> None:
    table = result_tables([result("HCN-R", 0.015), result("EASE", 0.02, seeds=1)])[0]
    hcn = next(r for r in table.rows if r.result.model == "HCN-R")
    # Seeds are at .015, .025 and .035: the best of the table is the reference.
    assert hcn.result is table.rows[0].result
    table = result_tables([result("HCN-R", 0.015), result("EASE", 0.02, seeds=1)],
                          {"beauty": "EASE"})[0]  # fmt: skip
    gain = table.rows[0].difference
    assert gain is not None
    assert gain.interval.mean == pytest.approx(0.005)
    assert gain_text(gain, named=True).endswith("2/3 seeds (over EASE)")


def test_models_measured_on_other_users_are_not_compared() -> None:
    other = result("MIND")
    short = replace(
        other,
        per_unit={k: [u[:-1] for u in v] for k, v in other.per_unit.items()},
    )
    with pytest.raises(DataError, match=r"59 units.*60"):
        result_tables([result("HCN-R", 0.2), short])


def test_a_reference_that_was_not_measured_gives_no_gain_and_asked_for_an_error() -> None:
    assert result_tables([result("MIND", reference="SASRec")])[0].rows[0].difference is None
    with pytest.raises(DataError, match="no model 'SASRec' to compare with"):
        result_tables([result("MIND")], {"beauty": "SASRec"})
    with pytest.raises(DataError, match="no results of table 'books'"):
        result_tables([result("MIND")], {"books": "MIND"})


def test_numbers_by_hand() -> None:
    assert spread((0.1, 0.3)) == "0.2000 ± 0.1414"
    assert spread((0.25,)) == "0.2500"
    assert spread(None) == "-"
    figures = (None, 0.01234, 12.34, 999, 9999, 12_345, 2_500_000, 3.1e9)
    shown = ["-", "0.0123", "12.3", "999", "9999", "12.3k", "2.5M", "3.1G"]
    assert [quantity(x) for x in figures] == shown


@pytest.mark.parametrize(
    ("name", "card", "own"),
    [
        ("HCN-R, K=1", "HCN-R", True),
        ("hcn_r", "HCN-R", True),
        ("desmil_r", "DESMIL-R", True),
        ("ssl_two_tower", "SSL two-tower", True),
        ("MC-MLCC S=4", "MC-MLCC", True),
        ("MLCC", "MC-MLCC", True),
        ("MaskNet parallel", "MaskNet", True),
        ("DCN-V2", "DCN-V2", False),
        ("DNN", "DNN", False),
        ("YouTube DNN + L2", "YouTube DNN", False),
        ("something else", "something else", False),
    ],
)
def test_a_model_belongs_to_the_card_of_its_name(name: str, card: str, own: bool) -> None:
    assert cards.card_name(result(name)) == card
    assert cards.is_own_model(result(name)) == own


def test_the_family_decides_over_the_name() -> None:
    assert cards.card_name(result("control", family="DESMIL-R")) == "DESMIL-R"


def test_rendering_writes_page_plot_and_cards_and_twice_the_same(tmp_path: Path) -> None:
    saved = [
        result("HCN-R", 0.2, notes="long 20, short 5"),
        result("HCN-R, K=1", 0.1),
        result("DESMIL-R", 0.05, table="shift"),
        result("Popularity", -0.1, seeds=1),
    ]
    for each in saved:
        each.save(tmp_path / "results")
    docs, folder = tmp_path / "docs", tmp_path / "models" / "cards"
    written = render(tmp_path / "results", docs, folder, "tandem evaluate --results results")
    before = {path: path.read_bytes() for path in written}
    assert (
        render(tmp_path / "results", docs, folder, "tandem evaluate --results results") == written
    )
    assert {path: path.read_bytes() for path in written} == before

    page = (docs / "models.md").read_text()
    assert "Generated from 4 result files" in page
    assert "`tandem evaluate --results results`" in page
    for each in saved:
        assert spread(each.metrics["recall@50"]) in page
        assert (docs / f"plots/{each.table}.svg").is_file()
    assert "[HCN-R, K=1](../models/cards/hcn-r.md)" in page
    assert "Note on HCN-R: long 20, short 5." in page
    assert sorted(p.name for p in folder.iterdir()) == [
        "desmil-r.md", "hcn-r.md", "popularity.md",
    ]  # fmt: skip
    hcn = (folder / "hcn-r.md").read_text()
    for expected in (
        "reconstructed from the paper's abstract", "## HCN-R, K=1 on beauty", "793,476",
        "18,948", "353k", "1.23 ms", "2026-01-02", "`make bench-models`", "Seeds: 0, 1, 2",
        "Open questions",
    ):  # fmt: skip
        assert expected in hcn
    assert "reconstructed from the abstracts" in (folder / "desmil-r.md").read_text()
    assert "econstruct" not in (folder / "popularity.md").read_text()


def test_every_point_of_the_plot_is_in_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn: list[float] = []
    original = Axes.plot

    def record(axis: Axes, x: object, *rest: object, **kwargs: object) -> object:
        drawn.extend(np.atleast_1d(np.asarray(x, float)))
        return original(axis, x, *rest, **kwargs)

    monkeypatch.setattr(Axes, "plot", record)
    table = result_tables([result("HCN-R", 0.2), result("EASE", seeds=1)])[0]
    tables_report.plot(table, tmp_path / "plot.svg")
    for row in table.rows:
        assert row.interval is not None
        for value in (row.interval.low, row.interval.high, row.result.mean("recall@50")):
            assert any(np.isclose(value, drawn))
    difference = table.rows[1].difference
    assert difference is not None
    assert any(np.isclose(difference.interval.mean, drawn))


def _run(*arguments: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(evaluate)
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, " ".join(done.output.split())


def test_the_command_renders_a_folder_and_names_what_is_wrong(tmp_path: Path) -> None:
    places = ("--docs", str(tmp_path / "docs"), "--cards", str(tmp_path / "cards"))
    code, said = _run("--results", str(tmp_path), *places)
    assert code == 1
    assert "holds no result files" in said
    result("MIND").save(tmp_path / "results")
    result("EASE", 0.1).save(tmp_path / "results")
    results = ("--results", str(tmp_path / "results"))
    code, _ = _run(*results, *places, "--reference", "beauty=MIND")
    assert code == 0
    assert "over MIND" in (tmp_path / "docs" / "models.md").read_text()
    code, said = _run(*results, *places, "--reference", "MIND")
    assert code == 1
    assert "TABLE=MODEL" in said
    code, said = _run()
    assert code == 2
    assert "--results" in said
    code, said = _run("nothing", "--artifacts", str(tmp_path))
    assert code == 1
    assert "nothing published yet" in said
