"""The tree of nodes that is made of libyaml's events."""

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from yaml.nodes import MappingNode, Node, SequenceNode

from models.yaml_reader import tree

TEXTS = st.text("ab \n-:[]{},#'\"|>?&%@`0123.~\t\\é\r", max_size=40)


def _shape(node: Node | None) -> object:
    """A tree as plain values, with the lines of its nodes; what is not there has none."""
    if node is None:
        return None
    value = node.value
    if isinstance(node, SequenceNode):
        value = [_shape(child) for child in node.value]
    elif isinstance(node, MappingNode):
        value = [(_shape(key), _shape(child)) for key, child in node.value]
    return type(node).__name__, node.tag, node.start_mark.line if value else None, value


@settings(max_examples=400)
@given(TEXTS)
def test_what_libyaml_and_pyyaml_both_read_is_the_same_tree(text: str) -> None:
    """But for a tag without a name, which stands in no manual of ours."""
    try:
        expected = _shape(yaml.compose(text, yaml.SafeLoader))
        found = _shape(tree.compose(text))
    except yaml.YAMLError:
        return
    assert found == expected
