"""Counts the lines of code: `make lines`. By folder, the product and its tests apart.

A line counts when it holds a token of the program: no blank lines, comments, docstrings or
generated files. Reads what git tracks, so that what a run has written is not counted.
"""

from __future__ import annotations

import ast
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

GENERATED = ("_pb2.py", "_pb2_grpc.py")
SPACE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}


def code_lines(file: Path) -> int:
    """How many lines of `file` hold code."""
    with file.open("rb") as source:
        lines = {
            line
            for token in tokenize.tokenize(source.readline)
            if token.type not in SPACE
            for line in range(token.start[0], token.end[0] + 1)
        }
    return len(lines - _docstrings(ast.parse(file.read_bytes())))


def _docstrings(tree: ast.AST) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body and ast.get_docstring(node) is not None else None
            if first is not None and first.end_lineno is not None:
                found.update(range(first.lineno, first.end_lineno + 1))
    return found


def folder(file: Path) -> str:
    """Where `file` is counted: two folders deep, three within services/experiments."""
    depth = 3 if file.parts[:2] == ("services", "experiments") else 2
    return "/".join(file.parent.parts[:depth]) or "."


def main() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], check=True, capture_output=True, text=True
    ).stdout.split()
    lines: dict[str, Counter[str]] = {"product": Counter(), "tests": Counter()}
    for file in map(Path, tracked):
        if not file.name.endswith(GENERATED):
            lines["tests" if file.parts[0] == "tests" else "product"][folder(file)] += code_lines(
                file
            )
    for part, counts in lines.items():
        for name in sorted(counts):
            if counts[name]:
                print(f"{name:36}{counts[name]:8,}")
        print(f"{part + ', together':36}{counts.total():8,}\n")


if __name__ == "__main__":
    main()
