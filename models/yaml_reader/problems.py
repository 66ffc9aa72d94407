"""What is wrong with a YAML file: one line per problem, with its place and its repair."""

from __future__ import annotations

from dataclasses import dataclass

MOST_LINES = 200  # of errors
LONGEST = 400  # characters of a part of an error


@dataclass(frozen=True)
class Problem:
    """One error of a file: where it is, why it is one, and how to repair it."""

    line: int
    path: str
    reason: str
    fix: str
    file: str = ""  # name of the file within the folder; empty: there is no folder

    def text(self, file: str) -> str:
        """`file` is the file, or the folder of several. Names and values of the file
        are in it as far as they are of a length that somebody reads."""
        name = f"{file}/{self.file}" if self.file else file
        where = f"{_cut(self.path)}: " if self.path else ""
        return f"{name}:{self.line}: {where}{_cut(self.reason)}. {_cut(self.fix)}."


def _cut(text: str) -> str:
    """Without the middle of what is too long: the value is at the front, what is wrong with it at
    the end."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} [{len(text) - LONGEST:,} characters] {text[-LONGEST // 2 :]}"


class YamlError(Exception):
    """Files cannot be used; `problems` lists everything that is wrong with them."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = sorted(problems, key=lambda p: (p.file, p.line))
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line per problem, of the first MOST_LINES: `file:line: path: reason. fix.`"""
        lines = [problem.text(self.file) for problem in self.problems[:MOST_LINES]]
        if (more := len(self.problems) - MOST_LINES) > 0:
            lines.append(f"{self.file}: there are {more:,} more problems. Repair these first.")
        return lines
