"""Attributes of torch's and torchvision's layers that store a width (`in_channels`, `groups`, ...)."""

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

from torchslim.surgery.plans import AttributeUpdate
from torchslim.utils.modules import named_modules, names_of_modules

Attributes = dict[str, int | tuple[int, ...]]
Shape = Callable[[Tensor], Sequence[int]]


def tensors_computed_by_hooks(model: nn.Module) -> dict[str, list[str]]:
    """The tensors that hooks of `torch.nn.utils` (weight norm, spectral norm, pruning) compute before each call.

    Keys are the parameters that they are computed from: `conv.weight_v` -> [`conv.weight`].
    """
    result: dict[str, list[str]] = {}
    for prefix, module in named_modules(model):
        for hook in module._forward_pre_hooks.values():
            names = _hook_target(hook)
            if names is not None and isinstance(module.__dict__.get(names[0]), Tensor):
                attribute, source = (f"{prefix}.{name}" if prefix else name for name in names)
                result.setdefault(source, []).append(attribute)
    return result


def _hook_target(hook: Any) -> tuple[str, str] | None:
    """The attribute that a hook sets, and the parameter that it computes it from; None for other hooks."""
    if isinstance(hook, WeightNorm):
        return hook.name, f"{hook.name}_v"
    if isinstance(hook, SpectralNorm):
        return hook.name, f"{hook.name}_orig"
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name, f"{hook._tensor_name}_orig"
    return None


def weight_of(layer: nn.Module, name: str = "weight") -> Tensor:
    """The tensor that determines the shape of a layer's weight: the weight, or what it is computed from.

    A computed weight itself is not read: computing it may fail at new widths, and changes the state of a spectral norm.
    """
    if is_parametrized(layer, name):
        originals = layer.get_submodule(f"parametrizations.{name}")
        return max((*originals.parameters(recurse=False), *originals.buffers(recurse=False)), key=Tensor.numel)
    hooks = filter(None, map(_hook_target, layer._forward_pre_hooks.values()))
    source = next((source for target, source in hooks if target == name), name)
    weight: Tensor = getattr(layer, source)
    return weight


def _convolution(layer: _ConvNd, shape: Shape) -> Attributes:
    first, second = shape(weight_of(layer))[:2]
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels and second == 1
    if isinstance(layer, _ConvTransposeNd):
        groups = first if depthwise else layer.groups
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    multiplier = layer.out_channels // layer.in_channels if depthwise else 1
    groups = first // multiplier if depthwise else layer.groups
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _linear(layer: nn.Linear, shape: Shape) -> Attributes:
    out_features, in_features = shape(weight_of(layer))
    return {"out_features": out_features, "in_features": in_features}


def _bilinear(layer: nn.Bilinear, shape: Shape) -> Attributes:
    out_features, *read = shape(weight_of(layer))
    return {"out_features": out_features, "in1_features": read[0], "in2_features": read[1]}


def _embedding(layer: nn.Embedding | nn.EmbeddingBag, shape: Shape) -> Attributes:
    return {"embedding_dim": shape(weight_of(layer))[1]}


def _norm(layer: _NormBase, shape: Shape) -> Attributes:
    tensor = layer.weight if layer.weight is not None else layer.running_mean
    return {} if tensor is None else {"num_features": shape(tensor)[0]}


def _layer_norm(layer: Any, shape: Shape) -> Attributes:
    return {} if layer.weight is None else {"normalized_shape": tuple(shape(layer.weight))}


def _group_norm(layer: nn.GroupNorm, shape: Shape) -> Attributes:
    return {} if layer.weight is None else {"num_channels": shape(layer.weight)[0]}


def _prelu(layer: nn.PReLU, shape: Shape) -> Attributes:
    return {"num_parameters": shape(layer.weight)[0]}


def _recurrent(layer: nn.RNNBase, shape: Shape) -> Attributes:
    rows, columns = shape(weight_of(layer, "weight_ih_l0"))
    sizes: Attributes = {"input_size": columns, "hidden_size": rows // {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)}
    return sizes | ({"proj_size": shape(weight_of(layer, "weight_hr_l0"))[0]} if layer.proj_size else {})


def _recurrent_cell(layer: nn.RNNCellBase, shape: Shape) -> Attributes:
    return {"input_size": shape(weight_of(layer, "weight_ih"))[1],
            "hidden_size": shape(weight_of(layer, "weight_hh"))[1]}


def _attention(layer: nn.MultiheadAttention, shape: Shape) -> Attributes:
    widths: Attributes = {"embed_dim": shape(weight_of(layer.out_proj))[0]}
    if layer.in_proj_weight is not None:
        return widths | dict.fromkeys(("kdim", "vdim"), shape(layer.in_proj_weight)[1])
    return widths | {"kdim": shape(layer.k_proj_weight)[1], "vdim": shape(layer.v_proj_weight)[1]}


_LAYERS: tuple[tuple[type[nn.Module], Callable[[Any, Shape], Attributes]], ...] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (_NormBase, _norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
    (nn.MultiheadAttention, _attention),
)


def _layers() -> Iterator[tuple[type[nn.Module], Callable[[Any, Shape], Attributes]]]:
    yield from _LAYERS
    deformable = sys.modules.get("torchvision.ops.deform_conv")  # in use only if torchvision was imported
    if deformable is not None:
        yield deformable.DeformConv2d, _convolution


def _current_shape(tensor: Tensor) -> Sequence[int]:
    return tensor.shape


def outdated_attributes(model: nn.Module, shape: Shape = _current_shape,
                        groups: Mapping[str, int] | None = None) -> list[AttributeUpdate]:
    """The attributes of torch's layers in `model` that contradict the shapes of their tensors.

    Args:
        model: the model.
        shape: gives a tensor's shape, the one that it has or the one after a cut. In the latter case attributes that
            contradict the current shape, too, are left out.
        groups: the groups that are left of convolutions that lost whole groups, by the name of the weight; no shape
            shows them.
    """
    attribute_updates = []
    kinds = tuple(_layers())
    for module, name in names_of_modules(model).items():
        for kind, attributes_of in kinds:
            if isinstance(module, kind):
                attributes = attributes_of(module, shape)
                groups_left = (groups or {}).get(f"{name}.weight" if name else "weight")
                if groups_left is not None and isinstance(module, _ConvNd):
                    attributes |= {"groups": groups_left, "in_channels": shape(weight_of(module))[1] * groups_left}
                for attribute, new in attributes.items():
                    old = getattr(module, attribute)
                    old = tuple(old) if isinstance(old, list | tuple) else old
                    if old != new and (shape is _current_shape
                                       or attributes_of(module, _current_shape)[attribute] == old):
                        attribute_updates.append(AttributeUpdate(name, attribute, old, new))
    return attribute_updates
