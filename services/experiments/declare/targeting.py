"""Targeting: the conditions that a request must fulfil to be in an experiment or in a segment.

Conditions look at what the request carries, its surface and the numbers of its `context`, and at
the counts and sums of the user's profile in the feature store. Testing them does no I/O: who asks
reads the profile first, and only if some condition wants it.

All conditions must hold. What a request does not have fulfils none, `not_in` and `not_equals`
included: a context value that is not there, a profile that is missing, expired or late. Conditions
decide whether a unit is in for this request and never which arm it gets, so that a unit whose
context changes leaves and comes back to the same arm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

Context: TypeAlias = Mapping[str, float]
Test: TypeAlias = Callable[[Any, Any], bool]
# (of the user, name or "" for the surface, test, operand)
Tests: TypeAlias = tuple[tuple[bool, str, Test, Any], ...]

NOTHING: Context = MappingProxyType({})


MEMBERSHIP: Mapping[str, Test] = {
    "in": lambda value, members: value in members,
    "not_in": lambda value, members: value not in members,
}
COMPARISONS: Mapping[str, Test] = {
    "equals": operator.eq,
    "not_equals": operator.ne,
    "below": operator.lt,
    "at_most": operator.le,
    "above": operator.gt,
    "at_least": operator.ge,
}
# What may be asked of the surface, a text, and of a number: a context value or of the user's.
SURFACE_OPERATORS = tuple(MEMBERSHIP)
NUMBER_OPERATORS = (*COMPARISONS, *MEMBERSHIP)


@dataclass(frozen=True)
class Condition:
    """`name` is that of a context value or of a number of the user's; empty for the surface.

    `values`: the members for `in` and `not_in`, the one number to compare with otherwise.
    """

    name: str
    operator: str
    values: tuple[str, ...] | tuple[float, ...]
    of_user: bool = False  # the name is one of `metrics.Events.tested`

    @property
    def of_surface(self) -> bool:
        return not self.name

    @property
    def subject(self) -> str:
        """What it looks at: `surface`, `context.hour`, `user.click`."""
        if self.of_surface:
            return "surface"
        return f"{'user' if self.of_user else 'context'}.{self.name}"

    @property
    def operands(self) -> tuple[str, ...]:
        """The values as text; numbers as short as they are exact."""
        return tuple(v if isinstance(v, str) else _number_text(v) for v in self.values)

    @property
    def text(self) -> str:
        """For people: `surface in [home, detail]`, `user.click at_least 10`."""
        joined = ", ".join(self.operands)
        operand = f"[{joined}]" if self.operator in MEMBERSHIP else joined
        return f"{self.subject} {self.operator} {operand}"


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def compiled(conditions: tuple[Condition, ...]) -> Tests:
    """The conditions in the form that `hold` takes."""
    return tuple(
        (c.of_user, c.name, MEMBERSHIP[c.operator], frozenset(c.values))
        if c.operator in MEMBERSHIP
        else (c.of_user, c.name, COMPARISONS[c.operator], c.values[0])
        for c in conditions
    )


def hold(tests: Tests, surface: str, context: Context, user: Context) -> bool:
    """Whether all tests hold for a request; an empty surface is one that it does not carry.

    `context` and `user`: numbers by name, the user's by those of `metrics.Events.tested`.
    """
    for of_user, name, test, operand in tests:
        # get, never []: reading a missing key of a protobuf map would add it to the request.
        value = (user if of_user else context).get(name) if name else (surface or None)
        if value is None or not test(value, operand):
            return False
    return True
