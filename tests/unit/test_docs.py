"""The pages name files that exist, and link to pages that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("protos", "models", "feature_store", "services", "load_tests", "tests", "docs")
PATH = re.compile(rf"`((?:{'|'.join(TOP)})/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    named = {ROOT / path for path in PATH.findall(text)}
    linked = {page.parent / link for link in LINK.findall(text)}
    made = {ROOT / "load_tests" / "results"}  # by benchmarks
    assert not {str(path) for path in named | linked if not path.exists() and path not in made}


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
