"""Targeting: the conditions that a request must fulfil to be in an experiment.

Conditions look at what the request carries, its surface and the numbers of its `context`. User
features are out of reach: the router assigns before it reads the feature store, because assignment
does no I/O; what an experiment is to be targeted on, the product sends as context.

All conditions of an experiment must hold. What a request does not carry fulfils none, `not_in` and
`not_equals` included. Conditions decide whether a unit is in for this request and never which arm
it gets, so that a unit whose context changes leaves and comes back to the same arm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

Context: TypeAlias = Mapping[str, float]
Test: TypeAlias = Callable[[Any, Any], bool]
Tests: TypeAlias = tuple[tuple[str, Test, Any], ...]  # (context name or "", test, operand)

NOTHING: Context = MappingProxyType({})


def _is_in(value: object, members: frozenset[object]) -> bool:
    return value in members


def _is_not_in(value: object, members: frozenset[object]) -> bool:
    return value not in members


MEMBERSHIP: Mapping[str, Test] = {"in": _is_in, "not_in": _is_not_in}
COMPARISONS: Mapping[str, Test] = {
    "equals": operator.eq,
    "not_equals": operator.ne,
    "below": operator.lt,
    "at_most": operator.le,
    "above": operator.gt,
    "at_least": operator.ge,
}
# What may be asked of the surface, a text, and of a context value, a float64.
SURFACE_OPERATORS = tuple(MEMBERSHIP)
CONTEXT_OPERATORS = (*COMPARISONS, *MEMBERSHIP)


@dataclass(frozen=True)
class Condition:
    """`context` is the name of a context value, or empty for the surface.

    `values`: the members for `in` and `not_in`, the one number to compare with otherwise.
    """

    context: str
    operator: str
    values: tuple[str, ...] | tuple[float, ...]

    @property
    def subject(self) -> str:
        return f"context.{self.context}" if self.context else "surface"

    @property
    def operands(self) -> tuple[str, ...]:
        """The values as text; numbers as short as they are exact."""
        return tuple(v if isinstance(v, str) else _number_text(v) for v in self.values)

    @property
    def text(self) -> str:
        """For people: `surface in [home, detail]`, `context.age_days at_least 7`."""
        joined = ", ".join(self.operands)
        operand = f"[{joined}]" if self.operator in MEMBERSHIP else joined
        return f"{self.subject} {self.operator} {operand}"


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def compiled(conditions: tuple[Condition, ...]) -> Tests:
    """The conditions in the form that `hold` takes."""
    return tuple(
        (c.context, MEMBERSHIP[c.operator], frozenset(c.values))
        if c.operator in MEMBERSHIP
        else (c.context, COMPARISONS[c.operator], c.values[0])
        for c in conditions
    )


def hold(tests: Tests, surface: str, context: Context) -> bool:
    """Whether all tests hold for a request; an empty surface is one that it does not carry."""
    for name, test, operand in tests:
        # get, never []: reading a missing key of a protobuf map would add it to the request.
        value = context.get(name) if name else (surface or None)
        if value is None or not test(value, operand):
            return False
    return True
