"""Value formulas: arithmetic over the tasks' scores and declared weights.

Names, numbers, `+ - * /`, minus signs and parentheses. A formula is parsed once into Python's own
syntax tree and evaluated over arrays, one float32 per candidate.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

MAX_CHARACTERS = 400  # so that nothing nests deeply

MOST = 1e30  # as a constant: float32 ends at 3e38

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
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise FormulaError("it is no arithmetic expression") from error
        self.text = text
        self._tree = tree
        self.names = tuple(dict.fromkeys(_names(tree)))

    def __call__(self, of: Mapping[str, Value]) -> np.ndarray:
        """float32 values, element by element, of arrays and numbers by name."""
        with np.errstate(all="ignore"):  # what is not finite is refused by who asks
            return np.asarray(_value(self._tree, of), np.float32)


def _names(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Name(id=name):
            yield name
        case ast.Constant(value=int() | float() as value) if (
            value is not True and abs(value) < 1e30
        ):
            pass
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield from _names(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _APPLY:
            yield from _names(left)
            yield from _names(right)
        case ast.Constant(value=value):
            raise FormulaError(f"{value!r} is no number that it can use")
        case _:
            raise FormulaError(f"{ast.unparse(node)!r} is not made of names, numbers and + - * /")


def _value(node: ast.expr, of: Mapping[str, Value]) -> Value:
    match node:
        case ast.Name(id=name):
            return of[name]
        case ast.Constant(value=int() | float() as value):
            return np.float32(value)
        case ast.UnaryOp(operand=operand):
            return np.negative(_value(operand, of))
        case ast.BinOp(left=left, op=op, right=right):
            return _APPLY[type(op)](_value(left, of), _value(right, of))
    raise AssertionError(node)
