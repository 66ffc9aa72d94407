"""schema.lock: what a schema may change of what was declared before, and what it remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.schema import lock
from models.schema.layout import layout_of
from models.schema.lock import Lock, LockError, problems
from services.schema_cli import app
from tests.unit.models.schema.declared import SHOP, shop

FIRST = Lock().with_(shop())


@pytest.mark.parametrize(
    ("old", "new", "path", "reason"),
    [
        ("click: {id: 2,", "click: {id: 7,", "events.click.id", "had the id 2"),
        ("impression: {id: 1,", "seen: {id: 1,", "events.seen.id", "of the event impression"),
        ('[DE, FR, "NO"]', '[DE, "NO", FR]', "user.given.country", "not those of before"),
        ('[DE, FR, "NO"]', "[DE, FR]", "user.given.country", "not those of before"),
        ('values: [DE, FR, "NO"]', "hashed: 300", "user.given.country", "stored otherwise"),
        ("in_stock: {type: flag, default: true}\n  counts", "in_stock: {type: number}\n  counts",
         "item.fields.in_stock", "was a flag and is a number now"),
        ("value: {unit: EUR,", "value: {unit: USD,", "events.purchase.value", "was in EUR"),
        ("coupon: {type: flag}", "coupon: {type: number}",
         "events.purchase.properties.coupon", "was a flag and is a number now"),
        ("buckets: 1000", "buckets: 50", "item.fields.words",
         "was a text of 1000 buckets and is a text of 50 buckets now"),
    ],
)  # fmt: skip
def test_what_old_rows_and_records_mean_cannot_change(
    old: str, new: str, path: str, reason: str
) -> None:
    changes = [(old, new)]
    if "in_stock: {type: number}" in new:
        changes.append(("eligible: [in_stock, released", "eligible: [released"))
    found = problems(FIRST, shop(*changes))
    assert [p.path for p in found] == [path]
    assert reason in found[0].reason
    wrong = new.split("\n")[0]
    assert wrong in SHOP.replace(old, new).splitlines()[found[0].line - 1]


@pytest.mark.parametrize(
    "change",
    [
        ('"NO"]', '"NO", SE]'),
        ("context: {device", "context: {hour: {type: number}, device"),
        ("half_lives: [30d]", "half_lives: [30d, 1d]"),
        ("length: 40", "length: 80"),
        ("    sizes: {type: numbers, length: 3}\n", ""),
        ("derived: {idle: {since: any}, bought: {since: purchase}}", "derived: {}"),
    ],
)
def test_what_is_added_or_taken_out_keeps_the_meaning_of_the_rest(change: tuple[str, str]) -> None:
    assert problems(FIRST, shop(change)) == []


def test_locks_of_before_they_said_how_many_buckets_a_text_has_are_added_to() -> None:
    before = replace(FIRST, fields=dict(FIRST.fields) | {"item.fields.words": "a text"})
    assert problems(before, shop()) == []
    assert before.with_(shop()) == FIRST


def test_what_was_taken_out_cannot_come_back_as_something_else() -> None:
    without = shop(("    sizes: {type: numbers, length: 3}\n", ""))
    later = FIRST.with_(without)
    assert problems(later, shop(("sizes: {type: numbers, length: 3}", "sizes: {type: flag}")))
    assert problems(later, shop()) == []


def test_a_lock_remembers_every_layout_once() -> None:
    longer = shop(("length: 40", "length: 80"))
    second = FIRST.with_(longer)
    assert second.with_(longer) == second
    assert second.with_(shop()).layouts == second.layouts
    remembered = {(group.hash, group.dtype) for group in second.layouts}
    for declared in (shop(), longer):
        assert {(group.hash, group.dtype) for group in layout_of(declared).groups} <= remembered
    assert len(second.layouts) == len(FIRST.layouts) + 1


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / lock.NAME
    assert lock.read(path) == Lock()
    lock.write(path, FIRST)
    read = lock.read(path)
    assert [g.hash for g in read.layouts] == [g.hash for g in FIRST.layouts]
    assert [g.meaning for g in read.layouts] == [g.meaning for g in FIRST.layouts]
    assert (read.events, read.fields, read.values) == (FIRST.events, FIRST.fields, FIRST.values)
    assert read.text() == FIRST.text()


def damaged(content: dict[str, Any], kind: str) -> str:
    match kind:
        case "layout":
            content["layouts"][0]["columns"] = [["country", "<u4", [], 0]]
        case "dtype":
            content["layouts"][0]["columns"] = [["country", "<x9", [], 0]]
        case "format":
            content["format"] = 2
        case "key":
            del content["events"]
        case "list":
            content["values"] = []
        case "truncated":
            return json.dumps(content)[:-100]
    return json.dumps(content)


@pytest.mark.parametrize("kind", ["layout", "dtype", "format", "key", "list", "truncated"])
def test_a_damaged_lock_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / lock.NAME
    path.write_text(damaged(json.loads(FIRST.text()), kind))
    with pytest.raises(LockError, match=r"schema\.lock"):
        lock.read(path)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings and experiments of another installation."""
    monkeypatch.chdir(tmp_path)


def test_a_schema_is_locked_checked_and_described(tmp_path: Path) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text(SHOP)
    of = ("--file", str(file))
    assert run("check", *of)[0] == 0
    assert run("lock", *of)[0] == 0
    first = (tmp_path / lock.NAME).read_text()
    code, said = run("lock", *of)
    assert (code, "has all" in said) == (0, True)
    assert (tmp_path / lock.NAME).read_text() == first

    older = tmp_path / "older.yaml"
    older.write_text(SHOP)
    file.write_text(SHOP.replace("length: 40", "length: 80"))
    code, said = run("check", str(older), *of)
    assert (code, "Rows change: history." in said) == (0, True)
    file.write_text(SHOP.replace("click: {id: 2,", "click: {id: 7,"))
    for arguments in (("check", *of), ("check", str(older), *of), ("lock", *of)):
        code, said = run(*arguments)
        assert (code, f"{file}:4: events.click.id: click had the id 2" in said) == (1, True)
    assert (tmp_path / lock.NAME).read_text() == first

    code, said = run("describe", "--file", str(older))
    assert code == 0
    for word in ("purchase", "EUR, 0 to 100,000", "released <= now", "sum_6", "half-life 30d"):
        assert word in said, word


def test_commands_say_what_is_wrong_with_their_files(tmp_path: Path) -> None:
    missing = tmp_path / "schema.yaml"
    assert "cannot be read" in run("describe", "--file", str(missing))[1]
    missing.write_text(SHOP.replace("hashed", "hash"))
    code, said = run("describe", "--file", str(missing))
    assert (code, "brand.hash: this key is not known" in said) == (1, True)
    missing.write_text(SHOP)
    (tmp_path / lock.NAME).write_text("{")
    code, said = run("lock", "--file", str(missing))
    assert (code, "version control" in said) == (1, True)
    assert (tmp_path / lock.NAME).read_text() == "{"


EXPERIMENTS = """\
version: 1
metrics: [{name: m, kind: mean, of: purchase, better: higher}]
layers:
  - name: l
    parameters: [rerank.buy_weight]
    experiments:
      - name: e
        where: {user: {click: {at_least: 2}}}
        arms:
          - {name: control, weight: 50}
          - {name: treatment, weight: 50, parameters: {rerank.buy_weight: 2}}
"""

WEIGHED = SHOP.replace(
    "{formula: click * purchase}",
    "{formula: click + buy_weight * purchase, weights: {buy_weight: {default: 1, max: 4}}}",
)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("of: purchase", "of: purchased", "experiments.yaml:2: metrics[0].of"),
        ("click: {at_least", "like: {at_least", "schema.yaml keeps no such number of users"),
        ("rerank.buy_weight", "rerank.by_weight",
         "experiments.yaml:11: layers[0].experiments[0].arms[1].parameters.rerank.by_weight: "
         "there is no parameter 'rerank.by_weight'. Write `rerank.buy_weight`"),
        ("rerank.buy_weight: 2", "rerank.buy_weight: 5", "is not a number from 0 to 4"),
    ],
)  # fmt: skip
def test_what_experiments_use_cannot_be_missing(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    (tmp_path / "schema.yaml").write_text(WEIGHED)
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS.replace(old, new))
    code, output = run("check")
    assert code == 1
    assert said in output


def test_a_schema_that_has_what_experiments_use_is_right(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(WEIGHED)
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    assert run("check")[0] == 0
    (tmp_path / "experiments.yaml").rename(tmp_path / "others.yaml")
    assert run("check")[0] == 0
    assert run("check", "--experiments", "others.yaml")[0] == 0
    assert run("check", "--experiments", "gone.yaml")[0] == 1


def test_a_weight_that_an_experiment_sets_cannot_be_taken_out(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(SHOP)
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    code, output = run("check")
    assert code == 1
    assert [line.split(": ")[0] for line in output.splitlines()] == [
        "experiments.yaml:5",
        "experiments.yaml:11",
    ]
    assert output.count("there is no parameter 'rerank.buy_weight'") == 2
