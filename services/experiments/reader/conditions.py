"""Conditions on a request, the `where` of experiments."""

from __future__ import annotations

from collections.abc import Sequence

from yaml.nodes import Node, SequenceNode

from services.experiments.reader.nodes import Nodes, join, suggestion
from services.experiments.schema import MAX_ID_BYTES, WHERE
from services.experiments.targeting import (
    CONTEXT_OPERATORS,
    MEMBERSHIP,
    SURFACE_OPERATORS,
    Condition,
)


class ConditionReader:
    """Reads what must hold of a request."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def where(self, node: Node | None, path: str) -> tuple[Condition, ...]:
        if node is None:
            return ()
        before = len(self._nodes.problems)
        fields = self._nodes.mapping(node, path, WHERE)
        conditions: list[Condition] = []
        if "surface" in fields:
            where = f"{path}.surface"
            conditions += self._conditions(fields["surface"], where, "", SURFACE_OPERATORS)
        for key, child in self._nodes.pairs(fields.get("context"), f"{path}.context"):
            name, where = str(key.value), f"{path}.context.{key.value}"
            if not 1 <= len(name.encode()) <= MAX_ID_BYTES:
                self._nodes.report(
                    key,
                    where,
                    "the name is empty or too long",
                    f"Use the name of a context value, 1 to {MAX_ID_BYTES} bytes",
                )
                continue
            conditions += self._conditions(child, where, name, CONTEXT_OPERATORS)
        if not conditions and len(self._nodes.problems) == before:
            self._nodes.report(
                node,
                path,
                "there is no condition",
                "Name a surface or a context value with an operator, or delete this key",
            )
        return tuple(conditions)

    def _conditions(
        self, node: Node, path: str, context: str, operators: Sequence[str]
    ) -> list[Condition]:
        """The tests of one subject, the context value of that name or (empty) the surface."""
        before = len(self._nodes.problems)
        conditions = []
        for key, child in self._nodes.pairs(node, path):
            name, where = str(key.value), join(path, str(key.value))
            if name not in operators:
                self._nodes.report(
                    key, where, "this operator is not known", suggestion(name, operators)
                )
                continue
            read = self._nodes.number if context else self._nodes.string
            if name in MEMBERSHIP:
                children = self._nodes.sequence(child, where)
                if not children and isinstance(child, SequenceNode):
                    self._nodes.report(child, where, "the list is empty", "List at least one value")
                values = tuple(read(c, f"{where}[{i}]") for i, c in enumerate(children))
            else:
                values = (read(child, where),)
            conditions.append(Condition(context, name, values))  # type: ignore[arg-type]
        if not conditions and len(self._nodes.problems) == before:
            self._nodes.report(
                node, path, "there is no operator", f"Write one of {', '.join(operators)}"
            )
        return conditions
