"""Check interpolations in saved configurations, before they are resolved.

`omegaconf.grammar` and `omegaconf.grammar_parser` are not part of OmegaConf's documented API; seen in 2.3.1.
"""

import re
from typing import Any

from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser as Grammar
from omegaconf.grammar_parser import parse

MAX_INTERPOLATIONS = 5  # references in a value
RESOLVERS = ("project", "shipped", "fast_precision")  # legal in a saved configuration: those of config/resolvers.py


def check_interpolations(plain: Any, where: tuple[Any, ...], value: Any, given: set[str]) -> None:
    """Check the interpolations in a value.

    Args:
        plain: the whole configuration, unresolved.
        where: keys of the value.
        value: a leaf of `plain`.
        given: dotted keys that the command line replaces; references to them are legal.

    Raises:
        ValueError: for a resolver outside `RESOLVERS`, a reference to a node or to another interpolation, and more than
            `MAX_INTERPOLATIONS` references.
    """
    if not isinstance(value, str) or "${" not in value:
        return
    waiting, count = [parse(value)], 0
    while waiting:
        part = waiting.pop()
        inner = [child for child in getattr(part, "children", None) or [] if hasattr(child, "children")]
        waiting += inner
        if isinstance(part, Grammar.InterpolationResolverContext):
            if (name := part.resolverName().getText()) not in RESOLVERS:
                raise ValueError(f"the resolver {name} is off, legal: {', '.join(RESOLVERS)}")
        elif isinstance(part, Grammar.InterpolationNodeContext):
            key = part.getText().removeprefix("${").removesuffix("}").strip()
            target = _referred(plain, where, key)
            again = isinstance(target, dict | list) or (isinstance(target, str) and "${" in target)
            if again and key not in given:
                raise ValueError(f"it refers to {key}, a node or itself a reference; legal: references to plain values")
            count += 1
    if count > MAX_INTERPOLATIONS:
        raise ValueError(f"more than {MAX_INTERPOLATIONS} references")


def _referred(plain: Any, where: tuple[Any, ...], key: str) -> Any:
    """Return the unresolved value that `key`, of an interpolation at `where`, refers to; None if it is missing."""
    if not re.fullmatch(r"\.*[\w-]+(\.[\w-]+)*", key):
        raise ValueError(f"{key} is not a dotted key")
    dots = len(key) - len(key.lstrip("."))
    node = plain
    for part in (*(where[:-dots] if dots else ()), *key.lstrip(".").split(".")):
        if isinstance(node, list):
            node = node[int(part)] if str(part).isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node
