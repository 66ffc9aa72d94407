"""No domain stands in the code: outside of the worlds and the readers of their files no identifier
and no literal has a word of the films."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = {"genre", "genres", "movie", "movies", "film", "films", "like", "likes", "liked"}
WORLDS = (
    "models/data/worlds", "models/data/readers", "models/data/simulator.py", "models/research",
    "models/data/datasets.py",  # the list of readers
)  # fmt: skip
# The one place that says which domain there is where none is named, what is shown of that one, and
# the trainings on it that `tandem train` offers.
DEFAULTS = ("services/common/schema.py", "services/first_start.py", "models/cli.py")
OLD = ["services/experiments/measure/fold.py 'likes'"]  # a count of the first version's records
NAME = re.compile(r"[\w.\-\[\]]+")  # else it is a sentence, and "like" a word of English


def words(text: str) -> set[str]:
    """The words of an identifier, of a dotted name, of a sentence."""
    text = re.sub(r"\w+_like\b|ArrayLike", "", text)  # zeros_like and its kind
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()))


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module"):
            if isinstance(found := getattr(node, field, None), str):
                yield found


def literals(tree: ast.AST) -> Iterator[str]:
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_no_code_outside_of_worlds_and_readers_names_their_domain() -> None:
    found = []
    for room in ("feature_store", "models", "services"):
        for path in sorted((ROOT / room).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith((*WORLDS, *DEFAULTS)):
                continue
            tree = ast.parse(path.read_text())
            found += [f"{place} {name}" for name in names(tree) if words(name) & WORDS]
            for text in literals(tree):
                meant = words(text) if NAME.fullmatch(text) else words(text) - {"like"}
                if meant & WORDS:
                    found.append(f"{place} {text!r}")
    assert [each for each in found if each not in OLD] == []
