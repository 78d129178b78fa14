"""A replacement as a module: Replacement + old layer -> the layers in its place."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.rewriting.replacements import Replacement
from torchslim.utils.layer_spec import filters_first, torch_layout

_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class GhostLayer(nn.Module):
    """Half of the channels by a convolution, the other half by a depthwise filter on each of these."""

    def __init__(self, primary: nn.Module, cheap: nn.Module) -> None:
        super().__init__()
        self.primary, self.cheap = primary, cheap

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, *map) -> (B, N, *map)."""
        half = self.primary(x)
        return torch.cat([half, self.cheap(half)], 1)


class FireLayer(nn.Module):
    """Squeezed by a pointwise convolution, then expanded by a pointwise and a larger one side by side."""

    def __init__(self, squeeze: nn.Module, expand1: nn.Module, expand3: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.expand1, self.expand3 = squeeze, expand1, expand3

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, *map) -> (B, N, *map)."""
        squeezed = self.squeeze(x)
        return torch.cat([self.expand1(squeezed), self.expand3(squeezed)], 1)


def build_replacement(replacement: Replacement, old: nn.Module, fresh: bool) -> nn.Module:
    """The layers, on the device and with the data type, memory format, mode and `requires_grad` of the old one.

    Args:
        replacement: of the old layer.
        old: the layer, with a `weight` and perhaps a `bias`.
        fresh: weights as torch initialises them, drawn from its generator; else computed from the old ones.
    """
    layer: Any = old
    weight: Tensor = layer.weight
    parts: dict[str, Any] = {name: spec.layer() for name, spec in replacement.parts}
    for part in parts.values():
        part.to(device=weight.device, dtype=weight.dtype)
        part.weight.requires_grad_(weight.requires_grad)
        if part.bias is not None:
            part.bias.requires_grad_(weight.requires_grad if layer.bias is None else layer.bias.requires_grad)
    if not fresh and not weight.is_meta:
        _set_weights(replacement, parts, layer)
    if replacement.layout == "ghost":
        new: nn.Module = GhostLayer(**parts)
    elif replacement.layout == "fire":
        new = FireLayer(**parts)
    else:
        new = _chain(replacement, parts, weight)
    last = _CHANNELS_LAST.get(weight.dim())
    if last is not None and weight.is_contiguous(memory_format=last) and not weight.is_contiguous():
        new.to(memory_format=last)
    return new.train(old.training)


def _chain(replacement: Replacement, parts: dict[str, Any], weight: Tensor) -> nn.Module:
    """The parts one after the other, with norms and activations between them and a shuffle at the end if wanted."""
    layers: list[tuple[str, nn.Module]] = []
    for index, (name, spec) in enumerate(replacement.parts):
        layers.append((name, parts[name]))
        if replacement.norm and index + 1 < len(replacement.parts):
            norm = _NORMS[spec.dims](spec.outputs).to(device=weight.device, dtype=weight.dtype)
            layers += [(f"{name}_norm", norm.requires_grad_(weight.requires_grad)),
                       (f"{name}_act", nn.ReLU(inplace=True))]
    if replacement.shuffle > 1:
        layers.append(("shuffle", nn.ChannelShuffle(replacement.shuffle)))
    return layers[0][1] if len(layers) == 1 else nn.Sequential(OrderedDict(layers))


@torch.no_grad()
def _set_weights(replacement: Replacement, parts: dict[str, Any], old: Any) -> None:
    """Weights whose composition is nearest to the old one, and the old bias."""
    weight = filters_first(old.weight.detach(), getattr(old, "groups", 1), getattr(old, "transposed", False))
    for (name, spec), part_weight in zip(replacement.parts, replacement.factorize(weight), strict=True):
        parts[name].weight.copy_(torch_layout(part_weight, spec))
        if parts[name].bias is not None:
            parts[name].bias.zero_()
    if old.bias is not None:
        _set_biases(replacement, parts, old.bias.detach())


def _set_biases(replacement: Replacement, parts: dict[str, Any], bias: Tensor) -> None:
    """The old bias on the last part; where outputs are concatenated, a half on each of two parts."""
    bias = bias if replacement.filter_order is None else bias[list(replacement.filter_order)]
    half = len(bias) // 2
    if replacement.layout == "ghost":
        parts["primary"].bias.copy_(bias[:half])
        # The second half is computed from the first one's outputs, bias included: subtract what that contributes.
        taps = parts["cheap"].weight.flatten(1)
        parts["cheap"].bias.copy_(bias[half:] - taps[:, taps.shape[1] // 2] * bias[:half])
    elif replacement.layout == "fire":
        parts["expand1"].bias.copy_(bias[:half])
        parts["expand3"].bias.copy_(bias[half:])
    else:
        parts[replacement.parts[-1][0]].bias.copy_(bias)
