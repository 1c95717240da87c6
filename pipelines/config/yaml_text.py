"""Reading a YAML's text in bounded time and memory: a small file may stand for a huge one, or for one without end."""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS = 256_000
_MOST_WRITTEN_OUT, _DEEPEST = 500_000, 50


def read(text: str) -> Any:
    """What a YAML holds; of one document, with plain values only.

    Raises:
        ValueError: it is no YAML, too long, nests too deeply, or is too large once its aliases (`*name`) are written
            out.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"is longer than {MOST_CHARACTERS} characters; a recommender needs a few thousand")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _extent(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"nests too deeply; {_DEEPEST} levels may be") from None
    except (KeyError, AttributeError) as error:  # `!!bool neither` and `!!timestamp never`, in PyYAML
        raise ValueError(f"not valid YAML: a value is not what its tag says ({error})") from None


def _extent(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many characters and values a node holds with its aliases written out, and how deep they nest. Counted, not
    made: ten lines of aliases of aliases stand for billions of values."""
    if id(node) not in known:
        known[id(node)] = (_MOST_WRITTEN_OUT, 0)  # until it is counted: one that holds itself is without end
        inside = [_extent(one, known) for one in _children(node)]
        own = 1 + len(node.value) if isinstance(node, yaml.ScalarNode) else 1
        known[id(node)] = (own + sum(size for size, _ in inside), 1 + max((depth for _, depth in inside), default=0))
    size, depth = known[id(node)]
    if size > _MOST_WRITTEN_OUT:
        raise ValueError(f"is longer than {_MOST_WRITTEN_OUT} with its aliases (`*name`) written out; use fewer")
    if depth > _DEEPEST:
        raise ValueError(f"nests too deeply; {_DEEPEST} levels may be")
    return size, depth


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
