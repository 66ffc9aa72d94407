"""From task scores to an order: the declared value formula, then diversity. Pure functions.

The value of an item is what the schema.yaml's formula makes of its task scores and of the weights,
which are parameters; a surface may have a formula of its own. With `diversity` > 0 the order is
made greedily: each place goes to the item with the largest value (relative to the largest
magnitude) minus `diversity` times its mean similarity to the items above it. The router orders
lists with it, and off-policy evaluation what the log says that they were drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from models.catalogue import ItemTable
from models.schema.declaration import Declaration
from models.schema.formula import Evaluate, Formula, Value

NEAR = 150  # candidates below the cut that diversity may lift above it
PARTITION_FROM = 500  # candidates from which a full sort costs more than to find the bound first
LARGEST_SCORE = 1e12  # as a magnitude; who takes scores from outside refuses more


class ValueFunction:
    """One formula over scores and weights by name, for candidates by the array."""

    __slots__ = ("_evaluate", "_read", "tasks", "weights")

    def __init__(self, declaration: Declaration, text: str) -> None:
        formula = Formula(text)
        weights = {w.name: w for w in declaration.weights}
        self.tasks = tuple(name for name in formula.names if name not in weights)
        self.weights = tuple(name for name in formula.names if name in weights)
        self._read = frozenset(self.tasks)
        bounds = dict.fromkeys(self.tasks, LARGEST_SCORE)
        bounds |= {
            name: max(abs(weights[name].low), abs(weights[name].high)) for name in self.weights
        }
        # Most formulas cannot leave float32. To look whether one has costs as much as it does.
        self._evaluate = formula.evaluate if formula.stays_finite(bounds) else _looked_at(formula)

    def __call__(
        self, tasks: tuple[str, ...], task_scores: np.ndarray, weights: Mapping[str, float]
    ) -> np.ndarray:
        """float32[n] of candidates with the scores float32[n, tasks], all finite.

        `tasks` has all that it reads (`lacking`). Where it is no finite number (it divides by 0) it
        is 0, or as low as the lowest that is finite: no item stands on top for that.
        """
        of = {name: task_scores[:, tasks.index(name)] for name in self.tasks}
        for name in self.weights:
            of[name] = _number(weights[name])
        return np.asarray(self._evaluate(of))

    def lacking(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks that it reads and that are not among these."""
        if self._read.issubset(tasks):
            return ()
        return tuple(name for name in self.tasks if name not in tasks)


class ValueModel:
    """What lists are ordered by in a domain; compiled once, when a process starts."""

    def __init__(self, declaration: Declaration) -> None:
        formulas = {surface.name: surface.formula for surface in declaration.surfaces}
        texts = dict.fromkeys([declaration.formula, *formulas.values()])
        functions = {text: ValueFunction(declaration, text) for text in texts}
        self._general = functions[declaration.formula]
        self._of_surface = {name: functions[text] for name, text in formulas.items()}
        self.surfaces = frozenset(declaration.surface_names)  # that lists are made for
        self.diverse_by = declaration.diversity  # a field of items; "": none
        # That a model must have, whichever surface it ranks for.
        self.tasks = tuple(dict.fromkeys(task for f in functions.values() for task in f.tasks))

    def of(self, surface: str) -> ValueFunction:
        """The formula of a surface: that of `value` where it is not declared or has none of its
        own."""
        return self._of_surface.get(surface, self._general)


@lru_cache(4096)
def _number(value: float) -> np.ndarray:
    """As numpy multiplies it fastest: float32, of no dimension."""
    return np.array(value, np.float32)


def _looked_at(formula: Formula) -> Evaluate:
    def evaluate(of: Mapping[str, Value]) -> np.ndarray:
        values = formula(of)
        if not math.isfinite(values.dot(values)):
            finite = np.isfinite(values)
            values = np.where(finite, values, values[finite].min(initial=0.0))
        return values

    return evaluate


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` best scores, best first; equal scores keep their order."""
    if len(scores) >= PARTITION_FROM and count < len(scores) // 4:
        # The count-th best score bounds what must be sorted.
        bound = np.partition(scores, -count)[-count]
        near = np.flatnonzero(scores >= bound)
        return near[(-scores[near]).argsort(kind="stable")[:count]]
    return (-scores).argsort(kind="stable")[:count]


def diversified(scores: np.ndarray, units: np.ndarray, diversity: float, count: int) -> np.ndarray:
    """Positions of a greedy list of `count`: scores float32[n], units float32[n, V] unit rows.

    With p items chosen the next one maximises p * value - diversity * (sum of its similarities),
    which is the rule of the module's docstring times p, and which a choice changes by one row.
    """
    relative = scores / max(float(scores.max()), -float(scores.min()), 1e-12)
    # A transposed copy: for a view numpy takes a routine that is slower at these sizes.
    change = relative - units @ np.ascontiguousarray((units * np.float32(diversity)).T)
    at = relative.argmax()
    chosen = [at]
    gain = np.zeros(len(scores))
    for _ in range(min(count, len(scores)) - 1):
        gain += change[at]
        gain[at] = -np.inf
        at = gain.argmax()
        chosen.append(at)
    return np.array(chosen)


def order_of(
    scores: np.ndarray,
    diversity: float,
    items: ItemTable,
    diverse_by: str,
    rows: np.ndarray,
    depth: int,
) -> np.ndarray:
    """Positions of the `depth` best of n candidates, best first, before any draw: by their values
    float32[n] and their values of the field `diverse_by`; rows: int[n], theirs in the item table.
    """
    if diversity == 0 or depth < 2:
        return top(scores, depth)
    # Items far below the cut cannot win enough by diversity to be worth looking at, and the work
    # grows with the square of those that are.
    near = top(scores, min(4 * depth, depth + NEAR))
    units = items.unit_values(diverse_by, rows[near])
    return near[diversified(scores[near], units, diversity, depth)]
