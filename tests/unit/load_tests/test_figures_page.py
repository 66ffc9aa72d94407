"""docs/figures.md holds what benchmarks have saved, and keeps what they did not measure anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from load_tests import figures_page
from models import figures


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    monkeypatch.setattr(figures_page, "RESULTS", tmp_path)
    monkeypatch.setattr(figures_page, "PAGE", tmp_path / "figures.md")
    monkeypatch.setattr(figures, "_tables", [])
    return tmp_path / "figures.md"


def test_a_printed_table_stands_on_the_page(page: Path) -> None:
    figures.print_table("speed", ["side", "requests/s"], [["router", 3.5], ["a|b", 7]])
    figures.save("bench_router", {"other": 1})
    figures_page.main()
    text = page.read_text()
    assert "## make bench-router" in text
    assert (
        "**speed**\n\n| side | requests/s |\n| --- | --: |\n| router | 3.5 |\n| a/b | 7 |" in text
    )


def test_what_was_not_measured_again_stays(page: Path) -> None:
    figures.save("bench_router", {})
    figures.print_table("first", ["x"], [[1]])
    figures.save("bench_e2e", {})
    figures_page.main()
    (page.parent / "bench_e2e.json").unlink()
    saved = page.parent / "bench_router.json"
    table = {"title": "new", "columns": ["y"], "rows": [["2"]]}
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "tables": [table]}))
    figures_page.main()
    figures_page.main()
    text = page.read_text()
    assert text.count("**first**") == text.count("**new**") == 1
    assert text.index("## make bench-e2e") < text.index("**first**")
    assert text.index("**first**") < text.index("## make bench-router") < text.index("**new**")
    assert text.count("# What was measured") == 1
