"""The rules: what replaces a heavy layer, and the weights that come closest to the old ones.

    separable          depthwise, then pointwise                          MobileNet, Howard et al. 2017
    grouped:4          filters in groups; grouped:4:shuffle mixes them    ShuffleNet, Zhang et al. 2018
    asymmetric         1 x k, then k x 1; asymmetric:16 channels between  Jaderberg et al. 2014; Inception-v3, 2016
    depthwise          one filter a channel, where M = N                  Sifre 2014
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
from typing import Literal

import torch
from torch import Tensor

from torchslim.errors import RequestError
from torchslim.rewriting import decomposition
from torchslim.utils.layer_spec import LayerSpec
from torchslim.utils.text import did_you_mean


@dataclass(frozen=True)
class Replacement:
    """What replaces a layer.

    Attributes:
        parts: names and specs.
        factorize: maps the old weight, (N, M / groups, k, ...), to those of the parts in the same form.
        layout: how the parts are connected: one after the other; "ghost": the second reads the outputs of the first,
            and both are concatenated; "fire": the second and the third read those of the first and are concatenated.
        shuffle: groups of a channel shuffle at the end, or 1.
        filter_order: indices of the old filters, where the new ones come in another order.
        norm: whether a batch norm and a ReLU stand between the parts.
    """

    parts: tuple[tuple[str, LayerSpec], ...]
    factorize: Callable[[Tensor], list[Tensor]]
    layout: Literal["chain", "ghost", "fire"] = "chain"
    shuffle: int = 1
    filter_order: tuple[int, ...] | None = None
    norm: bool = False


ReplacementOrReason = Replacement | str
"""A replacement, or why there is none."""


@dataclass(frozen=True)
class Rule:
    """A rule with its number and flags, as `parse_rule` reads them.

    Attributes:
        text: as requested.
        name: of the rule.
        number: channels or groups as an int, a share as a float; None where none is given.
        flags: "norm", "shuffle".
    """

    text: str
    name: str
    number: int | float | None
    flags: frozenset[str]

    def replacement(self, spec: LayerSpec) -> ReplacementOrReason:
        """What replaces such a layer."""
        result = _RULES[self.name][0](spec, self)
        if isinstance(result, str) or "norm" not in self.flags:
            return result
        parts = tuple((name, replace(part, bias=spec.bias)) for name, part in result.parts)
        return replace(result, parts=parts, norm=True)

    def lighter_replacement(self, spec: LayerSpec) -> ReplacementOrReason:
        """The same, refused if it has no fewer weights; not checked where the rule has a number."""
        result = self.replacement(spec)
        params = 0 if isinstance(result, str) else sum(part.params for _, part in result.parts)
        if self.number is None and params >= spec.params:
            return f"it would have {params:,} weights instead of {spec.params:,}"
        return result


def parse_rule(text: str) -> Rule:
    """`grouped:4:shuffle` as a rule.

    Raises:
        RequestError: an unknown rule, or a number or flag that it does not take.
    """
    name, *rest = text.split(":")
    if name == "width":
        raise RequestError(f"lighten: {text!r} is no rule: it would remove channels, not replace layers; take "
                           f"torchslim.prune(model, inputs, scope={{'*': {rest[0] if rest else 0.5}}})")
    if name not in _RULES:
        raise RequestError(f"lighten: unknown rule {text!r}; {did_you_mean(name, _RULES)}")
    _, form, flags = _RULES[name]
    numbers = [part for part in rest if part not in flags]
    number = _number(numbers[0]) if numbers else None
    valid = {"": not numbers, ":4": isinstance(number, int), "[:16]": not numbers or isinstance(number, int),
                 ":0.25": number is not None}[form]
    if len(numbers) > 1 or not valid or len(set(rest)) < len(rest):
        wanted = "".join(f"[:{flag}]" for flag in sorted(flags))
        raise RequestError(f"lighten: {text!r} is no form of the rule; wanted {name}{form}{wanted}"
                           f"{', a share with a point or a number of channels' if form == ':0.25' else ''}")
    return Rule(text, name, number, frozenset(rest) & flags)


def _number(text: str) -> int | float | None:
    """A count of at least 1, or a share in (0, 1], which has a point; None for anything else."""
    if text.isascii() and text.isdigit():
        return int(text) or None
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _reason_not_dense(spec: LayerSpec) -> str:
    """Why a layer is not a dense convolution with a kernel above 1; empty if it is."""
    if not spec.dims:
        return "a linear layer has no kernel"
    if spec.groups > 1:
        return "light already: it has groups"
    return "light already: its kernel is 1" if prod(spec.kernel) == 1 else ""


def separable(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """Depthwise, then pointwise."""
    return _reason_not_dense(spec) or Replacement(
        (("depthwise", replace(spec, outputs=spec.inputs, groups=spec.inputs, bias=False)),
         ("pointwise", spec.pointwise(spec.inputs, spec.outputs, bias=spec.bias))),
        lambda weight: list(decomposition.separable(weight)))


def grouped(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
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
    shuffled = "shuffle" in rule.flags
    # The shuffle moves the n-th filter of group g to index n * groups + g: it must be the old filter of that index.
    order = torch.arange(spec.outputs).reshape(-1, groups).T.reshape(-1) if shuffled else torch.arange(spec.outputs)

    def weights(weight: Tensor) -> list[Tensor]:
        width = spec.inputs // groups
        rows = weight[order.to(weight.device)].chunk(groups)
        return [torch.cat([row[:, index * width:(index + 1) * width] for index, row in enumerate(rows)])]

    return Replacement((("conv", replace(spec, groups=groups)),), weights, shuffle=groups if shuffled else 1,
                   filter_order=tuple(order.tolist()) if shuffled else None)


def asymmetric(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """1 x k, then k x 1; in groups where the old layer has some."""
    if spec.dims != 2 or min(spec.kernel) == 1:
        return "no kernel that is larger than 1 in two dimensions"
    if spec.depthwise:
        return "light already: it is depthwise"
    middle = int(rule.number or spec.outputs)
    if middle % spec.groups:
        return f"{middle} channels cannot be split into {spec.groups} groups"
    width = middle // spec.groups

    def weights(weight: Tensor) -> list[Tensor]:
        pairs = [decomposition.asymmetric(part, width) for part in weight.chunk(spec.groups)]
        return [torch.cat(column) for column in zip(*pairs, strict=True)]

    return Replacement((("horizontal", replace(spec.along(1), outputs=middle, bias=False)),
                    ("vertical", replace(spec.along(0), inputs=middle))), weights)


def depthwise(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """One filter a channel."""
    if spec.depthwise:
        return "light already: it is depthwise"
    if spec.inputs != spec.outputs or prod(spec.kernel) == 1:
        return "not as many outputs as inputs, or a kernel of 1"

    def weights(weight: Tensor) -> list[Tensor]:
        channels = torch.arange(spec.inputs, device=weight.device)
        return [weight[channels, channels % spec.fan_in].unsqueeze(1)]

    return Replacement((("conv", replace(spec, groups=spec.inputs)),), weights)


def lowrank(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """A low rank: two factors of a matrix, three of a kernel."""
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
                       lambda weight: list(decomposition.tucker2(weight, outer, inner)))
    width = rank(min(spec.inputs, spec.outputs))

    def weights(weight: Tensor) -> list[Tensor]:
        left, right = decomposition.low_rank_factors(weight.flatten(1), width)
        ones = [1] * spec.dims
        return [right.reshape(width, -1, *ones), left.reshape(-1, width, *ones)]

    return Replacement((("reduce", replace(spec, outputs=width, bias=False)),
                    ("expand", spec.pointwise(width, spec.outputs, bias=spec.bias))), weights)


def ghost(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """The first half of the filters, and for each of the others a depthwise filter on one of their maps."""
    half = spec.outputs // 2
    if not spec.dims or spec.groups > 1 or spec.outputs % 2 or spec.transposed:
        return "linear or transposed, with groups, or with an odd number of outputs"
    cheap = replace(spec.pointwise(half, half, groups=half, bias=spec.bias), kernel=(3,) * spec.dims,
                    padding=(1,) * spec.dims)
    return Replacement((("primary", replace(spec, outputs=half)), ("cheap", cheap)),
                       lambda weight: [weight[:half], decomposition.ghost_filters(weight[:half], weight[half:])],
                       layout="ghost")


def fire(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """Squeezed to an eighth of the outputs, then half of them by kernels of 1, half by the old ones."""
    squeezed, half = int(rule.number or max(1, spec.outputs // 8)), spec.outputs // 2
    if _reason_not_dense(spec):
        return _reason_not_dense(spec)
    if spec.transposed or spec.outputs % 2:
        return "transposed, or with an odd number of outputs"
    centred = tuple(d * (k - 1) // 2 for d, k in zip(spec.dilation, spec.kernel, strict=True))
    if not all(k % 2 for k in spec.kernel) or spec.padding not in ("same", centred):
        return "its kernel has no middle that the padding puts on each position"
    expand1 = replace(spec.pointwise(squeezed, half, bias=spec.bias), stride=spec.stride)
    return Replacement((("squeeze", spec.pointwise(spec.inputs, squeezed)), ("expand1", expand1),
                    ("expand3", replace(spec, inputs=squeezed, outputs=half))),
                   lambda weight: list(decomposition.fire_factors(weight, squeezed)), layout="fire")


def pointwise_after(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """A convolution as wide as its input, then 1x1."""
    def weights(weight: Tensor) -> list[Tensor]:
        left, right = decomposition.low_rank_factors(weight.flatten(1), spec.inputs)
        return [right.reshape(spec.inputs, *weight.shape[1:]), left.reshape(*left.shape, *[1] * spec.dims)]

    return _reason_not_dense(spec) or Replacement((("conv", replace(spec, outputs=spec.inputs, bias=False)),
                                    ("pointwise", spec.pointwise(spec.inputs, spec.outputs, bias=spec.bias))), weights)


def pointwise_before(spec: LayerSpec, rule: Rule) -> ReplacementOrReason:
    """1x1 to the output's width, then a convolution as wide as that."""
    return _reason_not_dense(spec) or Replacement((("pointwise", spec.pointwise(spec.inputs, spec.outputs)),
                                    ("conv", replace(spec, inputs=spec.outputs))),
                                   lambda weight: list(decomposition.squeeze_factors(weight, spec.outputs)))


_NORM = frozenset({"norm"})
# The rule, the form of its number, and the flags that it takes.
_RULES: dict[str, tuple[Callable[[LayerSpec, Rule], ReplacementOrReason], str, frozenset[str]]] = {
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


def rule_names() -> Sequence[str]:
    """The names of all rules."""
    return tuple(_RULES)
