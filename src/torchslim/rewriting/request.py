"""The arguments of `lighten`, checked before any work: rules with their patterns, kernel sizes, the seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

from torchslim.errors import RequestError
from torchslim.rewriting.layer_selection import LayerFilter
from torchslim.rewriting.replacements import Rule, parse_rule

Rules = str | Sequence[str | tuple[str, Sequence[str]]]
"""One rule, or several, each with or without patterns of the layers that it is for."""


def parse_rules(rules: Any) -> list[tuple[Rule, tuple[str, ...]]]:
    """Rules, each with the patterns of the layers that it is for.

    Raises:
        RequestError: an unknown rule, none, or something else.
    """
    if (isinstance(rules, list | tuple) and len(rules) == 2 and isinstance(rules[0], str)
            and isinstance(rules[1], list | tuple) and all(isinstance(pattern, str) for pattern in rules[1])):
        raise RequestError(f"lighten: rules={rules!r} is one pair; wanted a list of pairs: [{rules!r}]")
    items = [rules] if isinstance(rules, str) else list(rules) if isinstance(rules, list | tuple) else [rules]
    if not items:
        raise RequestError("lighten: no rule; wanted such as 'separable' or ['pointwise-before', 'grouped:4']")
    parsed: list[tuple[Rule, tuple[str, ...]]] = []
    for item in items:
        pair = (item, ()) if isinstance(item, str) else item
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise RequestError(f"lighten: {item!r} is no rule; wanted such as 'separable', or a pair "
                               "('separable', ['layer1.*'])")
        text, patterns = pair
        parsed.append((parse_rule(text), LayerFilter(pattern_tuple("patterns", patterns)).only))
    return parsed


def pattern_tuple(name: str, patterns: Any) -> Any:
    """Patterns as a tuple; None is for no patterns. A string is returned as it is: `LayerFilter` refuses it.

    Raises:
        RequestError: it can't be iterated over.
    """
    if patterns is None or isinstance(patterns, str):
        return patterns if patterns else ()
    if not isinstance(patterns, Iterable):
        raise RequestError(f"lighten: {name}={patterns!r} is no list of patterns of layer names; try "
                           f"{name}=['layer1.*']")
    return tuple(patterns)


def kernel_sizes(kernels: Any) -> tuple[int, ...]:
    """Kernel sizes as plain ints, whatever integer type they have; None is for all.

    Raises:
        RequestError: something else.
    """
    try:
        return () if kernels is None else tuple(index(size) for size in kernels)
    except TypeError:
        raise RequestError(f"lighten: kernels={kernels!r}: wanted sizes such as [3, 5]") from None


def check_seed(seed: Any) -> int:
    """A seed that torch takes.

    Raises:
        RequestError: no integer, or one that does not fit into 64 bits.
    """
    try:
        number = index(seed)
    except TypeError:
        number = 2**64
    if not -2**63 <= number < 2**64:
        raise RequestError(f"lighten: seed={seed!r} is no seed; wanted a whole number such as 0")
    return number
