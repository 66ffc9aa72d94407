"""Conditions on a request: the `where` of experiments, and segments."""

from __future__ import annotations

from collections.abc import Sequence

from yaml.nodes import Node, SequenceNode

from services.experiments.declare.config import Segment
from services.experiments.declare.reader.claims import Claims
from services.experiments.declare.reader.nodes import Nodes, join, line_of, suggestion
from services.experiments.declare.schema import MAX_ID_BYTES, MAX_SEGMENTS, SEGMENT, WHERE
from services.experiments.declare.targeting import (
    MEMBERSHIP,
    NUMBER_OPERATORS,
    SURFACE_OPERATORS,
    USER_FEATURES,
    Condition,
)


class ConditionReader:
    """Reads what must hold of a request, and the declared segments of all files."""

    def __init__(self, nodes: Nodes, claims: Claims) -> None:
        self._nodes = nodes
        self._claims = claims
        self._names: dict[str, str] = {}  # of segments -> place of its first use
        self.segments: list[Segment] = []

    def declare_segments(self, node: Node | None, path: str) -> None:
        for i, child in enumerate(self._nodes.sequence(node, path)):
            where = f"{path}[{i}]"
            fields = self._nodes.mapping(child, where, SEGMENT)
            name = self._nodes.name(fields.get("name"), f"{where}.name")
            self._claims.first_use(name, self._names, child, where)
            conditions = self.where(fields.get("where"), f"{where}.where")
            self.segments.append(Segment(name, conditions, line_of(child), self._nodes.file))
            if len(self.segments) == MAX_SEGMENTS + 1:
                self._nodes.report(
                    child,
                    where,
                    f"there are more than {MAX_SEGMENTS} segments",
                    "Delete those that decide nothing: every one of them is looked at separately",
                )

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
            conditions += self._conditions(child, where, name, NUMBER_OPERATORS)
        for key, child in self._nodes.pairs(fields.get("user"), f"{path}.user"):
            name, where = str(key.value), f"{path}.user.{key.value}"
            if name not in USER_FEATURES:
                self._nodes.report(
                    key,
                    where,
                    "there is no such count in the user's profile",
                    suggestion(name, USER_FEATURES),
                )
                continue
            conditions += self._conditions(child, where, name, NUMBER_OPERATORS, of_user=True)
        if not conditions and len(self._nodes.problems) == before:
            self._nodes.report(
                node,
                path,
                "there is no condition",
                "Name a surface, a context value or a count of the user's with an operator, or "
                "delete this key",
            )
        return tuple(conditions)

    def _conditions(
        self,
        node: Node,
        path: str,
        subject: str,
        operators: Sequence[str],
        *,
        of_user: bool = False,
    ) -> list[Condition]:
        """The tests of one subject: the number of that name, or (empty) the surface."""
        before = len(self._nodes.problems)
        conditions = []
        for key, child in self._nodes.pairs(node, path):
            name, where = str(key.value), join(path, str(key.value))
            if name not in operators:
                self._nodes.report(
                    key, where, "this operator is not known", suggestion(name, operators)
                )
                continue
            read = self._nodes.number if subject else self._nodes.string
            if name in MEMBERSHIP:
                children = self._nodes.sequence(child, where)
                if not children and isinstance(child, SequenceNode):
                    self._nodes.report(child, where, "the list is empty", "List at least one value")
                values = tuple(read(c, f"{where}[{i}]") for i, c in enumerate(children))
            else:
                values = (read(child, where),)
            conditions.append(Condition(subject, name, values, of_user))  # type: ignore[arg-type]
        if not conditions and len(self._nodes.problems) == before:
            self._nodes.report(
                node, path, "there is no operator", f"Write one of {', '.join(operators)}"
            )
        return conditions
