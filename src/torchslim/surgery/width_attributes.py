"""Attributes of torch's and torchvision's layers that remember a width (`in_channels`, `groups`, ...)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torchslim.surgery.plans import Mend
from torchslim.utils.modules import named_modules, names_of_modules

Facts = dict[str, int | tuple[int, ...]]
Shape = Callable[[Tensor], Sequence[int]]


def computed(model: nn.Module) -> dict[str, list[str]]:
    """What hooks of `torch.nn.utils` (weight norm, spectral norm, pruning) compute before each call.

    By the name of the parameter that it is computed of: for `conv.weight_v` the attribute `conv.weight`.
    """
    found: dict[str, list[str]] = {}
    for prefix, module in named_modules(model):
        for hook in module._forward_pre_hooks.values():
            name = _computed_by(hook)
            if name is not None and isinstance(module.__dict__.get(name[0]), Tensor):
                attribute, source = (f"{prefix}.{part}" if prefix else part for part in name)
                found.setdefault(source, []).append(attribute)
    return found


def _computed_by(hook: Any) -> tuple[str, str] | None:
    """The attribute that a hook sets, and the parameter that it computes this of."""
    if isinstance(hook, WeightNorm):
        return hook.name, f"{hook.name}_v"
    if isinstance(hook, SpectralNorm):
        return hook.name, f"{hook.name}_orig"
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name, f"{hook._tensor_name}_orig"
    return None


def weight_of(layer: nn.Module) -> Tensor:
    """The tensor that a layer's weight has its shape from: the weight, or what it is computed of.

    A computed weight itself is not asked for: that may fail at new widths, and a spectral norm changes each time.
    """
    if is_parametrized(layer, "weight"):
        held = layer.get_submodule("parametrizations.weight")
        return max((*held.parameters(recurse=False), *held.buffers(recurse=False)), key=Tensor.numel)
    hooks = filter(None, map(_computed_by, layer._forward_pre_hooks.values()))
    source = next((source for name, source in hooks if name == "weight"), "weight")
    weight: Tensor = getattr(layer, source)
    return weight


def _convolution(layer: _ConvNd, shape: Shape) -> Facts:
    first, second = shape(weight_of(layer))[:2]
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels and second == 1
    if isinstance(layer, _ConvTransposeNd):
        groups = first if depthwise else layer.groups
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    multiplier = layer.out_channels // layer.in_channels if depthwise else 1
    groups = first // multiplier if depthwise else layer.groups
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _linear(layer: nn.Linear, shape: Shape) -> Facts:
    out_features, in_features = shape(weight_of(layer))
    return {"out_features": out_features, "in_features": in_features}


def _embedding(layer: nn.Embedding, shape: Shape) -> Facts:
    return {"embedding_dim": shape(weight_of(layer))[1]}


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
    (nn.Embedding, _embedding),
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


def _today(tensor: Tensor) -> Sequence[int]:
    return tensor.shape


def outdated(model: nn.Module, shape: Shape = _today, groups: Mapping[str, int] | None = None) -> list[Mend]:
    """What torch's layers in `model` remember that their tensors' shapes contradict.

    `shape` gives a tensor's shape: that which it has, or that which it is going to have. In the latter case what
    contradicts its shape today is not reported. `groups` tells of grouped convolutions that have lost whole groups,
    which no shape shows: the weight's name and how many groups are left.
    """
    mends = []
    layers = tuple(_layers())
    for module, name in names_of_modules(model).items():
        for kind, facts in layers:
            if isinstance(module, kind):
                found = facts(module, shape)
                left = (groups or {}).get(f"{name}.weight" if name else "weight")
                if left is not None and isinstance(module, _ConvNd):
                    found |= {"groups": left, "in_channels": shape(weight_of(module))[1] * left}
                for attribute, new in found.items():
                    old = getattr(module, attribute)
                    old = tuple(old) if isinstance(old, list | tuple) else old
                    if old != new and (shape is _today or facts(module, _today)[attribute] == old):
                        mends.append(Mend(name, attribute, old, new))
    return mends
