"""The YAML of an experiments file as nodes, which know their lines, and everything wrong with them.

A value that is wrong is reported and replaced by a harmless one, so that reading goes on.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from services.experiments.declare.config import Problem
from services.experiments.declare.reader import tree
from services.experiments.declare.schema import NAME, TIMESTAMP, Block, names

NUMBER = re.compile(r"[-+]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][-+]?\d{1,3})?")
PERCENT = re.compile(r"\d{1,3}(\.\d{1,2})?")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STR, INT, FLOAT, BOOL, TIME = (
    f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "timestamp")
)


def instant_ms(text: str) -> int | None:
    """A timestamp with its zone as ms since the epoch; None when it is not one."""
    if not TIMESTAMP.fullmatch(text):
        return None
    try:
        return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)
    except ValueError:  # the 31st of June
        return None


# What libyaml says, where it does not tell what is meant.
_IN_OUR_WORDS = {
    "found invalid Unicode character escape code": (
        "this escape is no character: it cannot be written in UTF-8"
    ),
}
_CONSTRUCTOR = yaml.constructor.SafeConstructor()  # holds nothing between values


class Nodes:
    """Turns nodes into values and collects what is wrong on the way."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.file = ""  # the one being read, as Problem.file

    # Single values.

    def name(self, node: Node | None, path: str) -> str:
        if node is None:
            return ""
        name = self.string(node, path)
        if name and not NAME.fullmatch(name):
            self.report(
                node,
                path,
                f"{name!r} is not a name",
                "Use 1 to 64 letters, digits, dots, dashes and underscores",
            )
            return ""
        return name

    def percent(self, node: Node | None, path: str, default: int) -> int:
        """A percentage as a number of buckets, exactly; `default` is in buckets, too."""
        if node is None:
            return default
        tag, text = self.plain(node)
        if tag in (INT, FLOAT) and PERCENT.fullmatch(text) and Decimal(text) <= 100:
            return int(Decimal(text) * 100)
        self.report(
            node,
            path,
            f"{text!r} is not a percentage",
            "Write a number from 0 to 100 with at most two decimals, without a percent sign",
        )
        return 0

    def instant(self, node: Node | None, path: str, default: float) -> float:
        """A timestamp in ms since the epoch."""
        if node is None:
            return default
        tag, text = self.plain(node)
        if tag in (TIME, STR) and (ms := instant_ms(text)) is not None:
            return ms
        self.report(
            node,
            path,
            f"{text!r} is not an instant",
            "Write date, time and zone like 2026-12-01T09:00:00Z or 2026-12-01T10:00:00+01:00",
        )
        return default

    def choice(self, node: Node | None, path: str, choices: Sequence[str], where: str = "") -> str:
        """One of some words; empty when it is not there, or (reported) another."""
        if node is None:
            return ""
        text = self.string(node, path)
        if text and text not in choices:
            reason = f"{text!r} cannot stand here{where}"
            self.report(node, path, reason, suggestion(text, choices))
            return ""
        return text

    def positive(
        self,
        node: Node | None,
        path: str,
        default: float,
        most: float,
        *,
        below: bool = False,
        whole: bool = False,
    ) -> float:
        """A number above 0 and up to `most`, or `below` it."""
        if node is None:
            return default
        value = self.value(node, path)
        if (
            isinstance(value, int if whole else int | float)
            and not isinstance(value, bool)
            and (0 < value < most or (value == most and not below))
        ):
            return float(value)
        self.report(
            node,
            path,
            f"{self.plain(node)[1]!r} is not such a number",
            f"Write a {'whole ' if whole else ''}number above 0 and "
            f"{'below' if below else 'up to'} {most:.15g}",
        )
        return default

    def count(self, node: Node | None, path: str, default: int, most: int) -> int:
        """A whole number from 0 to `most`."""
        if node is None:
            return default
        value = self.value(node, path)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
            return value
        self.report(
            node,
            path,
            f"{self.plain(node)[1]!r} is not such a number",
            f"Write a whole number from 0 to {most}",
        )
        return default

    def number(self, node: Node, path: str) -> float:
        """A finite number as float64, which is what a request's context holds."""
        value = self.value(node, path)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        self.report(
            node,
            path,
            f"{self.plain(node)[1]!r} is not a number",
            "Write a finite number: context values and user features are numbers",
        )
        return 0.0

    def bool(self, node: Node | None, path: str, default: bool) -> bool:
        if node is None:
            return default
        tag, text = self.plain(node)
        if tag == BOOL and text in ("true", "false"):
            return text == "true"
        self.report(node, path, f"{text!r} is not a switch", "Write `true` or `false`")
        return default

    def string(self, node: Node, path: str) -> str:
        """A scalar's text; empty, and reported, for anything that YAML takes for something else."""
        tag, text = self.plain(node)
        if tag == STR and text:
            return text
        reason = f"{text!r} is not text" if tag and text else "text is missing here"
        self.report(node, path, reason, "Write a name, in quotes if YAML takes it for a value")
        return ""

    def value(self, node: Node, path: str) -> object:
        """A scalar as the Python value that YAML gives it; the parameter's spec checks it."""
        tag, text = self.plain(node)
        if tag not in (STR, INT, FLOAT, BOOL):
            return text or None
        if tag in (INT, FLOAT) and not NUMBER.fullmatch(text):
            return text  # 18:30, 0x1f, 1_000: numbers to YAML, which nobody means as one
        try:
            return _CONSTRUCTOR.construct_object(node)
        except (ValueError, LookupError):  # an explicit tag that the text does not fit
            return text

    # YAML structure.

    def compose(self, data: bytes) -> Node | None:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self.add(line, "", "the file is not UTF-8 text", "Save it in UTF-8")
            return None
        try:
            root = tree.compose(text)
        except yaml.reader.ReaderError as error:
            line = data.count(b"\n", 0, error.position) + 1
            self.add(line, "", "there is an invisible control character", "Delete it")
            return None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = error.problem or error.context or "this is not YAML"
            reason = _IN_OUR_WORDS.get(problem, problem)
            self.add(mark.line + 1 if mark else 1, "", reason, "Correct the YAML syntax here")
            return None
        if root is None:
            self.add(
                1, "", "the file is empty", "Write `version: 1` and `layers: []` to run nothing"
            )
        return root

    def mapping(self, node: Node, path: str, block: Block) -> dict[str, Node]:
        known = names(block)
        before = len(self.problems)
        fields = {str(key.value): child for key, child in self.pairs(node, path)}
        for key, child in list(fields.items()):
            if key not in known:
                self.report(child, join(path, key), "this key is not known", suggestion(key, known))
                del fields[key]
        if isinstance(node, MappingNode) or len(self.problems) == before:
            for key in [k.name for k in block if k.required]:
                if key not in fields:
                    self.report(node, join(path, key), "this key is missing", f"Add `{key}:`")
        return fields

    def pairs(self, node: Node | None, path: str) -> list[tuple[ScalarNode, Node]]:
        """The entries of a mapping, each key once; empty, and reported, when it is none."""
        if node is None:
            return []
        if not isinstance(node, MappingNode):
            self.report(node, path, "this is not a mapping", "Write `key: value` lines here")
            return []
        pairs: dict[str, tuple[ScalarNode, Node]] = {}
        for key, child in node.value:
            if not isinstance(key, ScalarNode):
                self.report(key, path, "a key must be plain text", "Write `key: value` lines here")
            elif key.value in pairs:
                self.report(
                    key, join(path, key.value), "this key stands here twice", "Delete one of them"
                )
            else:
                pairs[key.value] = (key, child)
        return list(pairs.values())

    def refuse(
        self, fields: dict[str, Node], path: str, refused: Mapping[str, tuple[str, str]]
    ) -> None:
        """Report and leave out the keys that others beside them rule out: key -> (reason, fix)."""
        for key, (reason, fix) in refused.items():
            if key in fields:
                self.report(fields.pop(key), join(path, key), reason, fix)

    def sequence(self, node: Node | None, path: str) -> list[Node]:
        if node is None:
            return []
        if not isinstance(node, SequenceNode):
            self.report(
                node, path, "this is not a list", "Write `- ` before every entry, or [] for none"
            )
            return []
        return cast("list[Node]", node.value)

    @staticmethod
    def plain(node: Node) -> tuple[str, str]:
        """(tag, text) of a scalar; ("", "") for anything else."""
        return (node.tag, node.value) if isinstance(node, ScalarNode) else ("", "")

    def report(self, node: Node, path: str, reason: str, fix: str) -> None:
        self.add(line_of(node), path, reason, fix)

    def add(self, line: int, path: str, reason: str, fix: str) -> None:
        self.problems.append(Problem(line, path, reason, fix, self.file))

    def place(self, path: str) -> str:
        """A path for messages about another part, with its file where there are several."""
        return f"{path} of {self.file}" if self.file else path


def line_of(node: Node) -> int:
    return int(node.start_mark.line) + 1


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def suggestion(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f"Write `{close[0]}` if you mean that" if close else f"Use one of {', '.join(known)}"
