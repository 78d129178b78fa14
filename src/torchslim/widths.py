"""Attributes of torch's and torchvision's layers that remember a width (`in_channels`, `groups`, ...)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from torchslim.modules import names_of_modules
from torchslim.plans import Mend

Facts = dict[str, int | tuple[int, ...]]
Shape = Callable[[Tensor], Sequence[int]]


def _convolution(layer: _ConvNd, shape: Shape) -> Facts:
    first, second = shape(layer.weight)[:2]
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels and second == 1
    if isinstance(layer, _ConvTransposeNd):
        groups = first if depthwise else layer.groups
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    multiplier = layer.out_channels // layer.in_channels if depthwise else 1
    groups = first // multiplier if depthwise else layer.groups
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _linear(layer: nn.Linear, shape: Shape) -> Facts:
    return {"out_features": shape(layer.weight)[0], "in_features": shape(layer.weight)[1]}


def _norm(layer: _NormBase, shape: Shape) -> Facts:
    held = layer.weight if layer.weight is not None else layer.running_mean
    return {} if held is None else {"num_features": shape(held)[0]}


def _layer_norm(layer: Any, shape: Shape) -> Facts:
    return {} if layer.weight is None else {"normalized_shape": tuple(shape(layer.weight))}


def _group_norm(layer: nn.GroupNorm, shape: Shape) -> Facts:
    if layer.weight is None:
        return {}
    channels = shape(layer.weight)[0]
    # One group a channel is what makes it an instance norm: that must stay so.
    return {"num_channels": channels,
            "num_groups": channels if layer.num_groups == layer.num_channels else layer.num_groups}


def _prelu(layer: nn.PReLU, shape: Shape) -> Facts:
    return {"num_parameters": shape(layer.weight)[0]}


_LAYERS: tuple[tuple[type[nn.Module], Callable[[Any, Shape], Facts]], ...] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (_NormBase, _norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.PReLU, _prelu),
)


def _layers() -> Iterator[tuple[type[nn.Module], Callable[[Any, Shape], Facts]]]:
    yield from _LAYERS
    deformable = sys.modules.get("torchvision.ops.deform_conv")  # not worth an import of torchvision
    if deformable is not None:
        yield deformable.DeformConv2d, _convolution


def outdated(model: nn.Module, shape: Shape = lambda tensor: tensor.shape) -> list[Mend]:
    """What torch's layers in `model` remember that their tensors' shapes contradict.

    `shape` gives a tensor's shape: that which it has, or that which it is going to have.
    """
    mends = []
    layers = tuple(_layers())
    for module, name in names_of_modules(model).items():
        for kind, facts in layers:
            if isinstance(module, kind):
                for attribute, new in facts(module, shape).items():
                    old = getattr(module, attribute)
                    old = tuple(old) if isinstance(old, list | tuple) else old
                    if old != new:
                        mends.append(Mend(name, attribute, old, new))
    return mends
