"""Value formulas: arithmetic over the tasks' scores and declared weights.

Names, numbers, `+ - * /`, minus signs and parentheses. A formula is parsed once, by Python's own
parser, into functions of numpy's within each other, and evaluated over arrays, one float32 per
candidate.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import TypeAlias

import numpy as np

MAX_CHARACTERS = 400  # so that nothing nests deeply
MOST = 1e30  # as a constant: float32 ends at 3e38
PART = re.compile(
    r"(?P<name>[A-Za-z_]\w*)|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])|[-+*/()]", re.ASCII
)
NO_PART = re.compile(r"[\w.]+|.")  # as much of it as belongs together: 0x10

LARGEST = float(np.finfo(np.float32).max)

Value: TypeAlias = "np.ndarray | np.float32"
Evaluate: TypeAlias = Callable[[Mapping[str, Value]], Value]

_APPLY: Mapping[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


class FormulaError(ValueError):
    """A text that is no formula; the message is a reason without the text."""


class Formula:
    """One formula; `names` are those that it reads, in the order of their first use.

    `evaluate` gives its values of float32 arrays and numbers by name, and complains (as numpy is
    set to) of what float32 cannot hold.
    """

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
        self.evaluate = _evaluate(tree)

    def __call__(self, of: Mapping[str, Value]) -> np.ndarray:
        """float32 values, element by element, of arrays and numbers by name."""
        with np.errstate(all="ignore"):  # what is not finite is refused by who asks
            return np.asarray(self.evaluate(of), np.float32)

    def stays_finite(self, bounds: Mapping[str, float]) -> bool:
        """Whether it and its parts stay within float32 while its names stay within +-bounds."""
        return _bound(self._tree, bounds) < LARGEST / 2  # for what rounding adds


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


def _evaluate(node: ast.expr) -> Evaluate:
    match node:
        case ast.Name(id=name):
            return itemgetter(name[1:])
        case ast.Constant(value=int() | float() as value):
            constant = np.array(value, np.float32)
            return lambda of: constant
        case ast.UnaryOp(operand=operand):
            positive = _evaluate(operand)
            return lambda of: np.negative(positive(of))
        case ast.BinOp(left=left, op=op, right=right):
            apply, first, second = _APPLY[type(op)], _evaluate(left), _evaluate(right)
            return lambda of: apply(first(of), second(of))
    raise AssertionError(node)


def _bound(node: ast.expr, bounds: Mapping[str, float]) -> float:
    """A magnitude that neither it nor any part of it exceeds; infinite, or NaN, where there is
    none."""
    match node:
        case ast.Name(id=name):
            return bounds[name[1:]]
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(operand=operand):
            return _bound(operand, bounds)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _bound(left, bounds), _bound(right, bounds)
            match op:
                case ast.Mult():
                    return max(a * b, a, b)
                case ast.Div():
                    least = np.float32(b) if isinstance(right, ast.Constant) else 0
                    return max(a / float(least), a, b) if least else math.inf
                case _:
                    return a + b
    raise AssertionError(node)
