"""YAML text as a tree of nodes, which know their lines.

libyaml finds the events; the tree is made of them here and not by libyaml, whose own loop calls
itself: a file of 200,000 brackets would end the process. There are no aliases: an anchor would let
one line stand in two places.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_DEPTH = 100


def compose(text: str) -> Node | None:
    """The one document of a text, or None if it is empty. Raises yaml.MarkedYAMLError, and
    yaml.reader.ReaderError with the position in UTF-8."""
    events = yaml.CSafeLoader(text)
    try:
        return _compose(events)
    finally:
        events.dispose()


def _compose(events: Any) -> Node | None:
    root: Node | None = None
    keys: list[Node | None] = []  # of each open mapping: the key that waits for its value
    opened: list[SequenceNode | MappingNode] = []
    while not isinstance(event := events.get_event(), yaml.StreamEndEvent):
        start: Any = event.start_mark  # not of the class that nodes are declared with, and like it
        match event:
            case yaml.ScalarEvent():
                tag = _tag(events, ScalarNode, event, event.value)
                node: Node = ScalarNode(tag, event.value, start)
            case yaml.SequenceStartEvent():
                node = SequenceNode(_tag(events, SequenceNode, event), [], start)
            case yaml.MappingStartEvent():
                node = MappingNode(_tag(events, MappingNode, event), [], start)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                opened.pop()
                keys.pop()
                continue
            case yaml.AliasEvent():
                raise _error("aliases are not supported", event)
            case yaml.DocumentStartEvent() if root is not None:
                raise _error("there is another document", event)
            case _:
                continue
        if not opened:
            root = node
        elif isinstance(opened[-1], SequenceNode):
            opened[-1].value.append(node)
        elif (key := keys[-1]) is None:
            keys[-1] = node
        else:
            opened[-1].value.append((key, node))
            keys[-1] = None
        if isinstance(node, SequenceNode | MappingNode):
            if len(opened) == MAX_DEPTH:
                raise _error("the file is nested too deeply", event)
            opened.append(node)
            keys.append(None)
    return root


def _tag(events: Any, kind: type[Node], event: Any, value: str | None = None) -> str:
    """What YAML takes a node for."""
    if event.tag is None or event.tag == "!":
        return str(events.resolve(kind, value, event.implicit))
    return str(event.tag)


def _error(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
