"""Values of a YAML file with the places where they stand, and what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from models.yaml_reader import tree
from models.yaml_reader.problems import Problem

# What libyaml says, where it does not tell what is meant.
_IN_OUR_WORDS = {
    "found invalid Unicode character escape code": (
        "this escape is no character: it cannot be written in UTF-8"
    ),
}


class Wrong(Exception):
    """A value cannot stand where it does: why, how to repair it, and where if not at the value."""

    def __init__(self, reason: str, fix: str, place: Place | None = None) -> None:
        super().__init__(reason)
        self.reason, self.fix, self.place = reason, fix, place


@dataclass(slots=True)
class Place:
    """A value as YAML has it, with the path to it and the file that it is in (as Problem.file)."""

    node: Node
    path: str
    file: str
    key: Node | None = None  # of an entry of a mapping

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1

    @property
    def plain(self) -> tuple[str, str]:
        """(tag, text) of a scalar; ("", "") for anything else."""
        return (self.node.tag, self.node.value) if isinstance(self.node, ScalarNode) else ("", "")

    @property
    def of_key(self) -> Place:
        """The entry's key, under the path of its value."""
        return Place(self.key or self.node, self.path, self.file)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, MappingNode)

    def under(self, key: str) -> Place:
        """A key that this mapping does not have, on the line where it begins."""
        return Place(self.node, join(self.path, key), self.file)

    def items(self) -> list[Place]:
        """The values of a list; Wrong when it is none."""
        if not isinstance(self.node, SequenceNode):
            raise Wrong("this is not a list", "Write `- ` before every entry, or [] for none")
        return [
            Place(child, f"{self.path}[{i}]", self.file) for i, child in enumerate(self.node.value)
        ]

    def __str__(self) -> str:
        """For messages about another part: with its file where there are several."""
        return f"{self.path} of {self.file}" if self.file else self.path


class Reading:
    """One reading of one or several files: what is wrong with them, and the names that are taken.

    `empty` says how to write a file that declares nothing."""

    empty = "Write it"

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.names: dict[tuple[type, str], Place] = {}  # the first use by each kind of section

    def add(self, place: Place, reason: str, fix: str) -> None:
        self.problems.append(Problem(place.line, place.path, reason, fix, place.file))

    def entries(self, place: Place) -> dict[str, Place]:
        """The values of a mapping, each key once; empty, and reported, when it is none."""
        if not isinstance(place.node, MappingNode):
            self.add(place, "this is not a mapping", "Write `key: value` lines here")
            return {}
        found: dict[str, Place] = {}
        for key, child in place.node.value:
            if not isinstance(key, ScalarNode):
                at = Place(key, place.path, place.file)
                self.add(at, "a key must be plain text", "Write `key: value` lines here")
                continue
            entry = Place(child, join(place.path, key.value), place.file, key)
            if key.value in found:
                self.add(entry.of_key, "this key stands here twice", "Delete one of them")
            else:
                found[str(key.value)] = entry
        return found

    def compose(self, data: bytes, file: str) -> Place | None:
        """The whole of a file; None, and reported, when it is empty or no YAML."""
        line = 1
        reason, fix = "the file is empty", self.empty
        try:
            if root := tree.compose(data.decode()):
                return Place(root, "", file)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            reason, fix = "the file is not UTF-8 text", "Save it in UTF-8"
        except yaml.reader.ReaderError as error:
            line = data.count(b"\n", 0, error.position) + 1
            reason, fix = "there is an invisible control character", "Delete it"
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            last = len(f"{data.decode()}.".splitlines())  # libyaml may mean the line after it
            line = min(mark.line + 1, last) if mark else 1
            problem = error.problem or error.context or "this is not YAML"
            reason, fix = _IN_OUR_WORDS.get(problem, problem), "Correct the YAML syntax here"
        self.problems.append(Problem(line, "", reason, fix, file))
        return None


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def suggestion(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f"Write `{close[0]}` if you mean that" if close else f"Use one of {', '.join(known)}"


def cannot_stand(text: str, choices: Iterable[str], where: str = "") -> tuple[str, str]:
    """(reason, fix) for a word that is none of the choices."""
    return f"{text!r} cannot stand here{where}", suggestion(text, choices)
