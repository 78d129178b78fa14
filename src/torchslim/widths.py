"""Attributes of torch's own layers that remember a width (`in_channels`, `groups`, `num_features`, ...)."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torchslim.plans import Mend

Facts = dict[str, int | tuple[int, ...]]


def computed(model: nn.Module) -> dict[str, list[str]]:
    """What hooks of `torch.nn.utils` (weight norm, spectral norm, pruning) compute before each call.

    By the name of the parameter that it is computed of: for `conv.weight_v` the attribute `conv.weight`.
    """
    found: dict[str, list[str]] = {}
    for prefix, module in model.named_modules():
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


def weight_source(layer: nn.Module) -> str:
    """The tensor that a layer's weight has its shape from: "weight", or what the weight is computed of.

    The weight itself is not asked for: computing it may fail at new widths, and a spectral norm changes each time.
    """
    if is_parametrized(layer, "weight"):
        held = layer.get_submodule("parametrizations.weight")
        own = dict([*held.named_parameters(recurse=False), *held.named_buffers(recurse=False)])
        return f"parametrizations.weight.{max(own, key=lambda name: own[name].numel())}"
    hooks = map(_computed_by, layer._forward_pre_hooks.values())
    return next((source for name, source in filter(None, hooks) if name == "weight"), "weight")


def _weight_shape(layer: nn.Module) -> torch.Size:
    weight: Tensor = attrgetter(weight_source(layer))(layer)
    return weight.shape


def _convolution(layer: _ConvNd) -> Facts:
    first, second = _weight_shape(layer)[:2]
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels and second == 1
    if isinstance(layer, _ConvTransposeNd):
        groups = first if depthwise else layer.groups
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    multiplier = layer.out_channels // layer.in_channels if depthwise else 1
    groups = first // multiplier if depthwise else layer.groups
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _linear(layer: nn.Linear) -> Facts:
    shape = _weight_shape(layer)
    return {"out_features": shape[0], "in_features": shape[1]}


def _embedding(layer: nn.Embedding) -> Facts:
    return {"embedding_dim": _weight_shape(layer)[1]}


def _norm(layer: _NormBase) -> Facts:
    held = layer.weight if layer.weight is not None else layer.running_mean
    return {} if held is None else {"num_features": held.shape[0]}


def _layer_norm(layer: Any) -> Facts:
    return {} if layer.weight is None else {"normalized_shape": tuple(layer.weight.shape)}


def _group_norm(layer: nn.GroupNorm) -> Facts:
    if layer.weight is None:
        return {}
    channels = layer.weight.shape[0]
    # One group a channel is what makes it an instance norm: that must stay so.
    return {"num_channels": channels,
            "num_groups": channels if layer.num_groups == layer.num_channels else layer.num_groups}


def _prelu(layer: nn.PReLU) -> Facts:
    return {"num_parameters": layer.weight.shape[0]}


_LAYERS: tuple[tuple[type[nn.Module], Callable[[Any], Facts]], ...] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (nn.Embedding, _embedding),
    (_NormBase, _norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.PReLU, _prelu),
)


def outdated(model: nn.Module) -> list[Mend]:
    """What torch's layers in `model` remember that their tensors' shapes contradict."""
    mends = []
    for name, module in model.named_modules():
        for kind, facts in _LAYERS:
            if isinstance(module, kind):
                for attribute, new in facts(module).items():
                    old = getattr(module, attribute)
                    old = tuple(old) if isinstance(old, list | tuple) else old
                    if old != new:
                        mends.append(Mend(name, attribute, old, new))
    return mends
