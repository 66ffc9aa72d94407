"""Tables, plots and model cards say what the result files say, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models.data.errors import DataError
from models.research.comparison import BEST_COUNTING, difference, drops, result_tables
from models.research.evaluate_cli import evaluate
from models.research.pages import cards
from models.research.pages.models_page import (
    drop_section,
    gain_table,
    metric_table,
    render,
    table_section,
)
from models.research.pages.plot import plot
from models.research.pages.text import gain_text, metric_text, quantity, spread
from models.training.results import ModelResult

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
    named = result("HCN-R", 0.2, references=("HCN-R, K=1",))
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
    ease = result("EASE", 0.02, seeds=1, settings={"deterministic": True})
    table = result_tables([result("HCN-R", 0.015), ease])[0]
    hcn = next(r for r in table.rows if r.result.model == "HCN-R")
    # Seeds are at .015, .025 and .035: the best of the table is the reference.
    assert hcn.result is table.rows[0].result
    table = result_tables([result("HCN-R", 0.015), ease], {"beauty": "EASE"})[0]
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
    with pytest.raises(DataError, match=r"number of units: 'HCN-R' has 60.*'MIND' has 59"):
        result_tables([result("HCN-R", 0.2), short])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "leave-one-out"}, "protocol: 'HCN-R' has 'user split', 'MIND' has 'leave"),
        ({"data": "ml-1m"}, "differ in data"),
        ({"unit": "test pair"}, "differ in unit"),
        ({"settings": {"digests": {"test": "b"}}}, "digest of test: 'HCN-R' has a, 'MIND' has b"),
        ({"settings": {}}, "parts of the data that have a digest: .* has test, 'MIND' has none"),
        ({"settings": {"digests": {"test": "a"}, "budget": 0.5}}, "budget"),
    ],
)
def test_rows_that_were_not_measured_alike_are_not_put_in_one_table(
    change: dict[str, Any], said: str
) -> None:
    same: dict[str, Any] = {"settings": {"digests": {"test": "a"}, "budget": 1.0}}
    assert result_tables([result("HCN-R", **same), result("MIND", **same)])
    with pytest.raises(DataError, match=said):
        result_tables([result("HCN-R", **same), result("MIND", **(same | change))])


def test_the_search_budget_must_agree_but_for_rows_that_are_not_searched() -> None:
    def tried(model: str, count: int) -> ModelResult:
        return result(model, protocol=f"time split; {count} settings tried per model")

    assert result_tables([tried("FM", 6), tried("Oracle", 0), tried("DNN", 6)])
    with pytest.raises(DataError, match="settings tried: 'FM' has 6, 'DNN' has 2"):
        result_tables([tried("FM", 6), tried("Oracle", 0), tried("DNN", 2)])


def test_the_gain_is_shown_over_every_reference() -> None:
    def counted(model: str, gain: float, validation: float) -> ModelResult:
        settings = {"deterministic": True, "validation": {"recall@50": validation}}
        return result(model, gain, seeds=1, settings=settings)

    rows = [
        result("HCN-R", 0.2, references=("HCN-R, K=1", "ComiRec-SA", BEST_COUNTING)),
        result("HCN-R, K=1", 0.1),
        result("ComiRec-SA", 0.15),
        counted("Markov", 0.05, 0.4),
        counted("EASE", 0.12, 0.3),  # better on test: the choice is made on validation
    ]
    table = result_tables(rows)[0]
    gains = table.rows[0].gains
    assert [g.reference for g in gains] == ["HCN-R, K=1", "ComiRec-SA", "Markov"]
    # Markov's one list of values is compared with every seed, which add 0.00, 0.01 and 0.02.
    expected = [0.1, 0.05, 0.16]
    assert [g.interval.mean for g in gains] == pytest.approx(expected)
    line = metric_table(table, table.metrics)[2]
    for gain in gains:
        assert gain_text(gain, named=True) in line


def test_seeds_are_drawn_too_where_both_sides_have_several() -> None:
    spread_out = result("HCN-R", seeds=2)
    ease = np.asarray(spread_out.per_unit["recall@50"][0])
    units = [ease - 0.2, ease + 0.4]
    means = tuple(float(u.mean()) for u in units)
    unstable = replace(
        spread_out,
        metrics=spread_out.metrics | {"recall@50": means},
        per_unit={"recall@50": units},
    )
    one = difference(unstable, result("MIND", seeds=1), "recall@50")
    two = difference(unstable, result("MIND", seeds=2), "recall@50")
    assert one is not None
    assert two is not None
    # With one seed in common only that one is compared; every user differs by the same 0.2.
    assert one.seeds_text == "1 seed"
    assert (one.interval.low, one.interval.high) == pytest.approx((-0.2, -0.2))
    # By hand: the two seeds differ by -0.2 and 0.4 - 0.01; drawn twice each, the mean spans both.
    assert two.seeds_text == "1/2 seeds"
    assert (two.interval.low, two.interval.high) == pytest.approx((-0.2, 0.39))
    other = replace(result("MIND", seeds=2), seeds=(7, 8))
    none = difference(unstable, other, "recall@50")
    assert none is not None
    assert none.seeds_text == "no seed in common"


def test_one_seed_is_said_and_a_model_without_seeds_has_no_spread() -> None:
    one = result("MIND", seeds=1)
    assert metric_text(one, "recall@50") == f"{one.mean('recall@50'):.4f} (1 seed)"
    counted = result("EASE", seeds=1, settings={"deterministic": True})
    assert metric_text(counted, "recall@50") == f"{counted.mean('recall@50'):.4f}"
    assert metric_text(counted, "ndcg@9") == "-"
    gain = difference(counted, replace(counted, model="Markov"), "recall@50")
    assert gain is not None
    assert gain.seeds_text == ""
    rows = metric_table(result_tables([one, counted])[0], ("recall@50",))[2:]
    seeds = {row.split(" | ")[0].strip("| "): row.split(" | ")[-1].strip(" |") for row in rows}
    assert seeds == {"MIND": "1", "EASE": "none"}


def test_the_table_shows_the_latency_and_each_machine_once() -> None:
    here, there = "EPYC, 2 cores", "Xeon, 8 cores"
    table = result_tables([
        result("MIND", machine=f"{here}, load 1.9"), result("HCN-R", machine=f"{here}, load 2.1"),
        result("SA", machine=f"{there}, load 0.1"),
    ])[0]  # fmt: skip
    assert all(" 1.23 " in line for line in metric_table(table, ("recall@50",))[2:])
    (line,) = [line for line in table_section(table).splitlines() if line.startswith("Machine:")]
    assert line == f"Machine: {here}; {there}."


def test_training_seconds_are_the_median_of_the_seeds() -> None:
    table = result_tables([result("MIND", train_seconds=(50.0, 999.0, 70.0))])[0]
    assert " 70 " in metric_table(table, ("recall@50",))[2]


def test_the_drop_is_paired_by_seed_and_user_draws() -> None:
    """Like and unlike users differ by a constant 0.3 for SA and 0.1 for DESMIL-R."""

    def on(table: str, model: str, level: float) -> ModelResult:
        more = {"settings": {"drop_from": "sim-iid"}} if table == "sim-ood" else {}
        return result(model, level, table=table, references=("SA",), **more)

    tables = result_tables([
        on("sim-iid", "SA", 0.5), on("sim-ood", "SA", 0.2),
        on("sim-iid", "DESMIL-R", 0.5), on("sim-ood", "DESMIL-R", 0.4),
    ])  # fmt: skip
    like, unlike = tables
    found = {drop.model: drop for drop in drops(unlike, like)}
    assert list(found) == ["DESMIL-R", "SA"]
    assert found["SA"].interval.mean == pytest.approx(0.3)
    assert found["SA"].interval.low < 0.3 < found["SA"].interval.high
    (gain,) = found["DESMIL-R"].smaller
    assert gain.reference == "SA"
    # The users' ease is common to both models: the difference of drops has no spread at all.
    assert (gain.interval.low, gain.interval.high) == pytest.approx((0.2, 0.2))
    assert gain.seeds_text == "3/3 seeds"
    text = "\n".join(drop_section(unlike, like))
    assert str(found["SA"].interval) in text
    assert gain_text(gain, named=True) in text


def test_the_page_shows_the_drop_below_the_shifted_table(tmp_path: Path) -> None:
    result("SA", 0.5, table="sim-iid").save(tmp_path / "results")
    shifted = result("SA", 0.2, table="sim-ood", settings={"drop_from": "sim-iid"})
    shifted.save(tmp_path / "results")
    render(tmp_path / "results", tmp_path / "docs", tmp_path / "cards", "x")
    page = (tmp_path / "docs" / "models.md").read_text()
    assert page.count("Drop in recall@50 from sim-iid to sim-ood") == 1
    assert page.index("## sim-ood") < page.index("Drop in recall@50")


def test_a_card_with_results_of_a_reconstruction_says_so(tmp_path: Path) -> None:
    saved = [
        result("HCN-R", 0.2, references=("Markov",)),
        result("Markov", references=("MIND",)),
        result("MIND", 0.1, references=("Markov",)),
        result("Union of MIND and more", 0.3, references=("Markov",),
               settings={"of": {"HCN-R": "a", "MIND": "b"}}),
    ]  # fmt: skip
    for each in saved:
        each.save(tmp_path / "results")
    render(tmp_path / "results", tmp_path / "docs", tmp_path / "cards", "x")
    notice = "HCN-R is reconstructed from the paper's abstract"
    for name, count in (("union-of-mind-and-more", 1), ("hcn-r", 1), ("mind", 0), ("markov", 0)):
        assert (tmp_path / "cards" / f"{name}.md").read_text().count(notice) == count


def test_a_reference_that_was_not_measured_gives_no_gain_and_asked_for_an_error() -> None:
    assert result_tables([result("MIND", references=("SASRec",))])[0].rows[0].difference is None
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
        result("Popularity", -0.1, seeds=1, table="counting"),
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
    plot(table, tmp_path / "plot.svg")
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
    code, _ = _run(*results, "--docs", str(tmp_path / "plain"), "--tables-only")
    assert code == 0
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["models.md"]
    assert "](" not in (tmp_path / "plain" / "models.md").read_text()
    code, said = _run(*results, *places, "--reference", "MIND")
    assert code == 1
    assert "TABLE=MODEL" in said
    code, said = _run()
    assert code == 2
    assert "--results" in said
    code, said = _run("nothing", "--artifacts", str(tmp_path))
    assert code == 1
    assert "nothing published yet" in said
