"""Names and salts, which may be used once in all files together."""

from __future__ import annotations

from yaml.nodes import Node

from services.experiments.declare.reader.nodes import Nodes


class Claims:
    """Who has used a name or a salt first, and a problem for whoever uses it again."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._salts: dict[str, str] = {}  # salt -> place of its first use

    def first_use(self, name: str, used: dict[str, str], node: Node, path: str) -> str:
        """`name` if it is new among `used`; empty, and reported, if it is not."""
        if name and name in used:
            self._nodes.report(
                node,
                f"{path}.name",
                f"{used[name]} has the same name {name!r}",
                "Give it a name of its own",
            )
            return ""
        used.setdefault(name, self._nodes.place(path))
        return name

    def salt(self, fields: dict[str, Node], path: str, name: str, owner: Node) -> str:
        salt = self._nodes.name(fields["salt"], f"{path}.salt") if "salt" in fields else name
        if salt and salt in self._salts:
            self._nodes.report(
                fields.get("salt", fields.get("name", owner)),
                f"{path}.salt",
                f"{self._salts[salt]} has the same salt {salt!r} (a name is its own salt), "
                "which would tie their units together",
                "Write a `salt` that nothing else has",
            )
        self._salts.setdefault(salt, self._nodes.place(path))
        return salt
