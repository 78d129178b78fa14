"""What was asked for, checked before any work: rules with their patterns, sizes, seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

from torchslim.errors import RequestError
from torchslim.rewriting.layer_selection import LayerFilter
from torchslim.rewriting.replacements import Rule, parse

Rules = str | Sequence[str | tuple[str, Sequence[str]]]
"""One rule, or several, each with or without patterns of the layers that it is for."""


def steps_of(rules: Any) -> list[tuple[Rule | float, tuple[str, ...]]]:
    """Rules with the patterns of layers that each is for; a number is a share of channels.

    Raises:
        RequestError: an unknown rule, none, or something else.
    """
    if (isinstance(rules, list | tuple) and len(rules) == 2 and isinstance(rules[0], str)
            and isinstance(rules[1], list | tuple) and all(isinstance(pattern, str) for pattern in rules[1])):
        raise RequestError(f"lighten: rules={rules!r} is one pair; wanted a list of pairs: [{rules!r}]")
    items = [rules] if isinstance(rules, str) else list(rules) if isinstance(rules, list | tuple) else [rules]
    if not items:
        raise RequestError("lighten: no rule; wanted such as 'separable' or ['pointwise-before', 'grouped:4']")
    found: list[tuple[Rule | float, tuple[str, ...]]] = []
    for item in items:
        pair = (item, ()) if isinstance(item, str) else item
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise RequestError(f"lighten: {item!r} is no rule; wanted such as 'separable', or a pair "
                               "('separable', ['layer1.*'])")
        text, patterns = pair
        rule = _share(text) if text.partition(":")[0] == "width" else parse(text)
        found.append((rule, LayerFilter(listed("patterns", patterns)).only))
    return found


def _share(text: str) -> float:
    try:
        share = float(text.partition(":")[2])
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise RequestError(f"lighten: {text!r} is no form of the rule; wanted width:0.5, a share in (0, 1]")
    return share


def listed(name: str, patterns: Any) -> Any:
    """As a tuple, but for a string, which `LayerFilter` refuses; None is for no patterns.

    Raises:
        RequestError: it can't be gone through.
    """
    if patterns is None or isinstance(patterns, str):
        return patterns if patterns else ()
    if not isinstance(patterns, Iterable):
        raise RequestError(f"lighten: {name}={patterns!r} is no list of patterns of layer names; try "
                           f"{name}=['layer1.*']")
    return tuple(patterns)


def sizes(kernels: Any) -> tuple[int, ...]:
    """Sizes of kernels as plain numbers, whatever integers they are; None is for all.

    Raises:
        RequestError: something else.
    """
    try:
        return () if kernels is None else tuple(index(size) for size in kernels)
    except TypeError:
        raise RequestError(f"lighten: kernels={kernels!r}: wanted sizes such as [3, 5]") from None


def seed_of(seed: Any) -> int:
    """A seed that torch takes.

    Raises:
        RequestError: it is none.
    """
    try:
        number = index(seed)
    except TypeError:
        number = 2**64
    if not -2**63 <= number < 2**64:
        raise RequestError(f"lighten: seed={seed!r} is no seed; wanted a whole number such as 0")
    return number


def check_widths(steps: Sequence[tuple[Rule | float, tuple[str, ...]]], choice: LayerFilter) -> None:
    """What chooses layers for rules has no say in which channels are cut.

    Raises:
        RequestError: it is given together with `width:`.
    """
    given = [name for name in ("kernels", "min_channels", "min_share", "ends") if getattr(choice, name)]
    share = next((rule for rule, _ in steps if isinstance(rule, float)), None)
    if given and share is not None:
        raise RequestError(f"lighten: {given[0]}= chooses layers, and width:{share:g} cuts channels of whole groups of "
                           "them; give only= or exclude=, or cut in a call of its own")
