"""The rules: what may stand in a heavy layer's place, and the weights that come closest to the old ones.

    separable          depthwise, then pointwise                          MobileNet, Howard et al. 2017
    grouped:4          filters in groups; grouped:4:shuffle mixes them    ShuffleNet, Zhang et al. 2018
    asymmetric         1 x k, then k x 1; asymmetric:16 channels between  Jaderberg et al. 2014; Inception-v3, 2016
    depthwise          one filter a channel, where both sides are equal   Sifre 2014
    lowrank:0.25       few channels inside: SVD, or Tucker-2              Kim et al. 2016
    ghost              half of the filters, and cheap copies of them      GhostNet, Han et al. 2020
    fire               squeezed, then expanded on two sides; fire:16      SqueezeNet, Iandola et al. 2016
    pointwise-after    as wide as the input, then 1x1                     factorised, without groups
    pointwise-before   1x1, then as wide as the output                    factorised, without groups

All are linear: the layer's own norm and activation follow as before. With `:norm` a batch norm and a ReLU stand between
the parts, each of which has a bias where the layer has one, as in networks that are trained from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from torchslim.errors import RequestError
from torchslim.rewriting import decomposition as fits
from torchslim.utils.layer_spec import Spec

Weights = list[Tensor]


@dataclass(frozen=True)
class Replacement:
    """What stands in a layer's place.

    Attributes:
        parts: names and specs; they follow each other, but for `joined`.
        weights: of the old weight, (N, M / groups, k, ...), those of the parts in the same form.
        joined: "" for a chain; "ghost" where the second part reads the first one's result and both are joined, "fire"
            where the second and the third read the first one's.
        shuffle: groups that are shuffled afterwards, or 1.
        order: of the old filters, where the new ones come in another.
        norm: a batch norm and a ReLU between the parts.
    """

    parts: tuple[tuple[str, Spec], ...]
    weights: Callable[[Tensor], Weights]
    joined: str = ""
    shuffle: int = 1
    order: tuple[int, ...] | None = None
    norm: bool = False


Found = Replacement | str
"""A rewrite, or why there is none."""


@dataclass(frozen=True)
class Rule:
    """A rule with its number and words, as `parse` reads them.

    Attributes:
        text: as it was asked for.
        name: of the rule.
        number: an int counts channels or groups, a float is a share; None where none is given.
        words: "norm", "shuffle".
    """

    text: str
    name: str
    number: int | float | None
    words: frozenset[str]

    def __call__(self, spec: Spec) -> Found:
        """What stands in the place of such a layer."""
        found = _RULES[self.name][0](spec, self)
        if isinstance(found, str) or "norm" not in self.words:
            return found
        parts = tuple((name, replace(part, bias=spec.bias)) for name, part in found.parts)
        return replace(found, parts=parts, norm=True)

    def lighter(self, spec: Spec) -> Found:
        """The same, unless it is no lighter; a number that was asked for is taken as it is."""
        found = self(spec)
        light = 0 if isinstance(found, str) else sum(part.params for _, part in found.parts)
        if self.number is None and light >= spec.params:
            return f"it would have {light:,} weights instead of {spec.params:,}"
        return found


def parse(text: str) -> Rule:
    """`grouped:4:shuffle` as a rule.

    Raises:
        RequestError: an unknown rule, or a number or word that it does not take.
    """
    name, *rest = text.split(":")
    if name not in _RULES:
        raise RequestError(f"lighten: unknown rule {text!r}; wanted one of {', '.join(_RULES)}, width:0.5")
    _, form, words = _RULES[name]
    numbers = [part for part in rest if part not in words]
    number = _number(numbers[0]) if numbers else None
    fits_form = {"": not numbers, ":4": isinstance(number, int), "[:16]": not numbers or isinstance(number, int),
                 ":0.25": number is not None}[form]
    if len(numbers) > 1 or not fits_form or len(set(rest)) < len(rest):
        wanted = "".join(f"[:{word}]" for word in sorted(words))
        raise RequestError(f"lighten: {text!r} is no form of the rule; wanted {name}{form}{wanted}"
                           f"{', a share with a point or a number of channels' if form == ':0.25' else ''}")
    return Rule(text, name, number, frozenset(rest) & words)


def _number(text: str) -> int | float | None:
    """A count of at least 1, or a share in (0, 1], which has a point; None for anything else."""
    if text.isascii() and text.isdigit():
        return int(text) or None
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _heavy(spec: Spec) -> str:
    """Why a layer has no dense kernel over positions; empty if it has."""
    if not spec.dims:
        return "a linear layer has no kernel"
    if spec.groups > 1:
        return "light already: it has groups"
    return "light already: its kernel is 1" if prod(spec.kernel) == 1 else ""


def separable(spec: Spec, rule: Rule) -> Found:
    """Depthwise, then pointwise."""
    return _heavy(spec) or Replacement(
        (("depthwise", replace(spec, outputs=spec.inputs, groups=spec.inputs, bias=False)),
         ("pointwise", spec.pointwise(spec.inputs, spec.outputs, bias=spec.bias))),
        lambda weight: list(fits.separable(weight)))


def grouped(spec: Spec, rule: Rule) -> Found:
    """Filters in groups."""
    groups = int(rule.number or 1)
    if not spec.dims:
        return "a linear layer has no groups"
    if spec.groups > 1:
        return "light already: it has groups"
    if spec.inputs % groups or spec.outputs % groups:
        return f"{spec.inputs} and {spec.outputs} channels cannot be split into {groups} groups"
    if groups == 1:
        return "one group is what it has"
    shuffled = "shuffle" in rule.words
    # Shuffled, the n-th filter of group g comes to place n * groups + g: it has to be the old filter of that place.
    order = torch.arange(spec.outputs).reshape(-1, groups).T.reshape(-1) if shuffled else torch.arange(spec.outputs)

    def weights(weight: Tensor) -> Weights:
        width = spec.inputs // groups
        rows = weight[order.to(weight.device)].chunk(groups)
        return [torch.cat([row[:, place * width:(place + 1) * width] for place, row in enumerate(rows)])]

    return Replacement((("conv", replace(spec, groups=groups)),), weights, shuffle=groups if shuffled else 1,
                   order=tuple(order.tolist()) if shuffled else None)


def asymmetric(spec: Spec, rule: Rule) -> Found:
    """1 x k, then k x 1; in groups where the old layer has some."""
    if spec.dims != 2 or min(spec.kernel) == 1:
        return "no kernel that is larger than 1 in two dimensions"
    if spec.depthwise:
        return "light already: it is depthwise"
    middle = int(rule.number or spec.outputs)
    if middle % spec.groups:
        return f"{middle} channels cannot be split into {spec.groups} groups"
    width = middle // spec.groups

    def weights(weight: Tensor) -> Weights:
        pairs = [fits.asymmetric(part, width) for part in weight.chunk(spec.groups)]
        return [torch.cat(column) for column in zip(*pairs, strict=True)]

    return Replacement((("horizontal", replace(spec.along(1), outputs=middle, bias=False)),
                    ("vertical", replace(spec.along(0), inputs=middle))), weights)


def depthwise(spec: Spec, rule: Rule) -> Found:
    """One filter a channel."""
    if spec.depthwise:
        return "light already: it is depthwise"
    if spec.inputs != spec.outputs or prod(spec.kernel) == 1:
        return "not as many outputs as inputs, or a kernel of 1"

    def weights(weight: Tensor) -> Weights:
        own = torch.arange(spec.inputs, device=weight.device)
        return [weight[own, own % spec.fan_in].unsqueeze(1)]

    return Replacement((("conv", replace(spec, groups=spec.inputs)),), weights)


def lowrank(spec: Spec, rule: Rule) -> Found:
    """Fewer channels inside: two factors of a matrix, three of a kernel."""
    if spec.groups > 1:
        return "light already: it has groups"
    number = rule.number or 1

    def rank(channels: int) -> int:
        return max(1, min(channels, round(number * channels) if isinstance(number, float) else number))

    if prod(spec.kernel) > 1:
        inner, outer = rank(spec.inputs), rank(spec.outputs)
        return Replacement((("reduce", spec.pointwise(spec.inputs, inner)),
                        ("core", replace(spec, inputs=inner, outputs=outer, bias=False)),
                        ("expand", spec.pointwise(outer, spec.outputs, bias=spec.bias))),
                       lambda weight: list(fits.tucker(weight, outer, inner)))
    width = rank(min(spec.inputs, spec.outputs))

    def weights(weight: Tensor) -> Weights:
        left, right = fits.product(weight.flatten(1), width)
        ones = [1] * spec.dims
        return [right.reshape(width, -1, *ones), left.reshape(-1, width, *ones)]

    return Replacement((("reduce", replace(spec, outputs=width, bias=False)),
                    ("expand", spec.pointwise(width, spec.outputs, bias=spec.bias))), weights)


def ghost(spec: Spec, rule: Rule) -> Found:
    """The first half of the filters, and for each of the others a depthwise filter on one of their maps."""
    half = spec.outputs // 2
    if not spec.dims or spec.groups > 1 or spec.outputs % 2 or spec.transposed:
        return "linear or transposed, with groups, or with an odd number of outputs"
    cheap = replace(spec.pointwise(half, half, groups=half, bias=spec.bias), kernel=(3,) * spec.dims,
                    padding=(1,) * spec.dims)
    return Replacement((("primary", replace(spec, outputs=half)), ("cheap", cheap)),
                   lambda weight: [weight[:half], fits.scaled(weight[:half], weight[half:])], joined="ghost")


def fire(spec: Spec, rule: Rule) -> Found:
    """Squeezed to an eighth of the outputs, then half of them by kernels of 1, half by the old ones."""
    squeezed, half = int(rule.number or max(1, spec.outputs // 8)), spec.outputs // 2
    if _heavy(spec):
        return _heavy(spec)
    if spec.transposed or spec.outputs % 2:
        return "transposed, or with an odd number of outputs"
    centred = tuple(d * (k - 1) // 2 for d, k in zip(spec.dilation, spec.kernel, strict=True))
    if not all(k % 2 for k in spec.kernel) or spec.padding not in ("same", centred):
        return "its kernel has no middle that the padding puts on each position"
    one = replace(spec.pointwise(squeezed, half, bias=spec.bias), stride=spec.stride)
    return Replacement((("squeeze", spec.pointwise(spec.inputs, squeezed)), ("expand1", one),
                    ("expand3", replace(spec, inputs=squeezed, outputs=half))),
                   lambda weight: list(fits.expanded(weight, squeezed)), joined="fire")


def pointwise_after(spec: Spec, rule: Rule) -> Found:
    """A convolution as wide as its input, then 1x1."""
    def weights(weight: Tensor) -> Weights:
        left, right = fits.product(weight.flatten(1), spec.inputs)
        return [right.reshape(spec.inputs, *weight.shape[1:]), left.reshape(*left.shape, *[1] * spec.dims)]

    return _heavy(spec) or Replacement((("conv", replace(spec, outputs=spec.inputs, bias=False)),
                                    ("pointwise", spec.pointwise(spec.inputs, spec.outputs, bias=spec.bias))), weights)


def pointwise_before(spec: Spec, rule: Rule) -> Found:
    """1x1 to the output's width, then a convolution as wide as that."""
    return _heavy(spec) or Replacement((("pointwise", spec.pointwise(spec.inputs, spec.outputs)),
                                    ("conv", replace(spec, inputs=spec.outputs))),
                                   lambda weight: list(fits.squeezed(weight, spec.outputs)))


_NORM = frozenset({"norm"})
# The rule, the form of its number, and the words that it takes.
_RULES: dict[str, tuple[Callable[[Spec, Rule], Found], str, frozenset[str]]] = {
    "separable": (separable, "", _NORM),
    "grouped": (grouped, ":4", frozenset({"shuffle"})),
    "asymmetric": (asymmetric, "[:16]", _NORM),
    "depthwise": (depthwise, "", frozenset()),
    "lowrank": (lowrank, ":0.25", frozenset()),
    "ghost": (ghost, "", frozenset()),
    "fire": (fire, "[:16]", frozenset()),
    "pointwise-after": (pointwise_after, "", _NORM),
    "pointwise-before": (pointwise_before, "", _NORM),
}


def names() -> Sequence[str]:
    """Of all rules."""
    return tuple(_RULES)
