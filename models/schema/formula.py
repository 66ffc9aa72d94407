"""Value formulas: arithmetic over the tasks' scores and declared weights.

Names, numbers, `+ - * /`, minus signs and parentheses. A formula is parsed once into Python's own
syntax tree and evaluated over arrays, one float32 per candidate.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

MAX_CHARACTERS = 400  # so that nothing nests deeply
MOST = 1e30  # as a constant: float32 ends at 3e38
PART = re.compile(
    r"(?P<name>[A-Za-z_]\w*)|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])|[-+*/()]", re.ASCII
)
NO_PART = re.compile(r"[\w.]+|.")  # as much of it as belongs together: 0x10

Value: TypeAlias = "np.ndarray | np.float32"

_APPLY: Mapping[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


class FormulaError(ValueError):
    """A text that is no formula; the message is a reason without the text."""


class Formula:
    """One formula; `names` are those that it reads, in the order of their first use."""

    def __init__(self, text: str) -> None:
        """Raises FormulaError."""
        if len(text) > MAX_CHARACTERS:
            raise FormulaError(f"it has more than {MAX_CHARACTERS} characters")
        python = " ".join(_parts(text))
        try:
            tree = ast.parse(python, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise FormulaError("it is no arithmetic expression") from error
        self.text = text
        self._tree = tree
        self.names = tuple(dict.fromkeys(_names(tree)))

    def __call__(self, of: Mapping[str, Value]) -> np.ndarray:
        """float32 values, element by element, of arrays and numbers by name."""
        with np.errstate(all="ignore"):  # what is not finite is refused by who asks
            return np.asarray(_value(self._tree, of), np.float32)


def _parts(text: str) -> Iterator[str]:
    """The parts of a formula as Python's, which has meanings of its own for some names (`return`,
    `True`): an underscore stands before each."""
    at = 0
    while rest := text[at:].lstrip():
        if not (part := PART.match(rest)):
            wrong = NO_PART.match(rest)
            raise FormulaError(f"{wrong[0] if wrong else rest!r} is no name, number or + - * /")
        yield f"_{part[0]}" if part["name"] else part[0]
        at = len(text) - len(rest) + part.end()


def _names(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Name(id=name):
            yield name[1:]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield from _names(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _APPLY:
            yield from _names(left)
            yield from _names(right)
        case ast.Constant(value=int() | float() as value):
            if value >= MOST:
                raise FormulaError(f"a number of it is not below {MOST:g}")
        case ast.UnaryOp(op=ast.UAdd()):
            raise FormulaError("a + has nothing to add to")
        case _:  # a call, ()
            raise FormulaError("its parentheses group nothing")


def _value(node: ast.expr, of: Mapping[str, Value]) -> Value:
    match node:
        case ast.Name(id=name):
            return of[name[1:]]
        case ast.Constant(value=int() | float() as value):
            return np.float32(value)
        case ast.UnaryOp(operand=operand):
            return np.negative(_value(operand, of))
        case ast.BinOp(left=left, op=op, right=right):
            return _APPLY[type(op)](_value(left, of), _value(right, of))
    raise AssertionError(node)
