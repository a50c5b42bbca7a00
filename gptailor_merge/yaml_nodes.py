"""Loads YAML that a stranger may have written, and finds the lines of its keys.

The size of what YAML means is not that of the file: aliases repeat values, and numbers may have any number
of digits. Both are bounded before a value is made. libyaml itself bounds the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from yaml.constructor import ConstructorError

MOST_VALUES = 200_000
"""Values that a document may have, where each use of an alias counts."""


DEEPEST = 40
"""Levels that lists and mappings may be nested."""


LONGEST_NUMBER = 64
"""Characters that a number may have."""


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen at run time
    """A safe loader that says of every value that it cannot make where that is."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())
            raise ConstructorError(None, None, f"no such value: {reason}", node.start_mark) from None


def compose(text: str) -> yaml.Node | None:
    """Returns the tree of nodes of a document, each with its line; an alias is the node that it repeats.

    Raises:
        YAMLError: the text is not YAML, or holds too much; says where.
    """
    return _composed(_Loader(text))


def compose_all(text: str) -> list[yaml.Node]:
    """Returns the trees of all documents of a text.

    Raises:
        YAMLError: see compose.
    """
    loader = _Loader(text)
    nodes = []
    try:
        while loader.check_node():
            nodes.append(loader.get_node())
    except RecursionError:
        raise _error("nested too deep", None) from None
    for node in nodes:
        _measure(node, {})
    return nodes


def load(text: str) -> Any:
    """Returns the value of a document.

    Raises:
        YAMLError: see compose; or a value cannot be made.
    """
    loader = _Loader(text)
    node = _composed(loader)
    return None if node is None else loader.construct_document(node)


def line_of(root: yaml.Node | None, path: Sequence[str | int]) -> int | None:
    """Returns the 1-based line of a key path; an absent key has its nearest parent's line."""
    if root is None:
        return None
    node, line = root, root.start_mark.line
    for key in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if pair[0].value == str(key)]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def _composed(loader: Any) -> yaml.Node | None:
    try:
        node: yaml.Node | None = loader.get_single_node()
    except RecursionError:
        raise _error("nested too deep", None) from None
    if node is not None:
        _measure(node, {})
    return node


def _error(problem: str, node: yaml.Node | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark if node is not None else None)


def _measure(node: yaml.Node, measured: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Returns (values, levels) of a node, with every use of an alias counted.

    Args:
        measured: id of a node -> its measure; None while its children are measured.
    """
    if id(node) in measured:
        measure = measured[id(node)]
        if measure is None:
            raise _error("a value contains itself by an alias", node)
        return measure
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
            text = f"expected a number of at most {LONGEST_NUMBER} characters, found {len(node.value):,}"
            raise _error(text, node)
        return 1, 0
    measured[id(node)] = None
    children = node.value
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        children = [child for pair in node.value for child in pair]
    values, levels = 1, 0
    for child in children:
        of_child, below = _measure(child, measured)
        values, levels = values + of_child, max(levels, below)
        if values > MOST_VALUES:
            raise _error(f"expected at most {MOST_VALUES:,} values, aliases counted, found more", node)
        if levels >= DEEPEST:
            raise _error(f"expected at most {DEEPEST} levels of lists and mappings, found more", node)
    measured[id(node)] = values, levels + 1
    return values, levels + 1


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            name = (key.tag, key.value)
            if name in lines and key.value != "<<":
                raise _error(f"the key {key.value!r} is there already, in line {lines[name]}", key)
            lines[name] = key.start_mark.line + 1
