"""A replacement as a module: Replacement + old layer -> the layers in its place."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.rewriting.replacements import Replacement
from torchslim.utils.layer_spec import plain, stored

_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Ghosts(nn.Module):
    """Half of the channels, and as many made of each of them by a depthwise filter."""

    def __init__(self, primary: nn.Module, cheap: nn.Module) -> None:
        super().__init__()
        self.primary, self.cheap = primary, cheap

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, *map) -> (B, N, *map)."""
        half = self.primary(x)
        return torch.cat([half, self.cheap(half)], 1)


class Expanded(nn.Module):
    """Squeezed, then expanded by kernels of 1 and by larger ones, side by side."""

    def __init__(self, squeeze: nn.Module, expand1: nn.Module, expand3: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.expand1, self.expand3 = squeeze, expand1, expand3

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, *map) -> (B, N, *map)."""
        squeezed = self.squeeze(x)
        return torch.cat([self.expand1(squeezed), self.expand3(squeezed)], 1)


def built(rewrite: Replacement, old: nn.Module, fitted: bool = True) -> nn.Module:
    """The layers, on the device and with the data type, memory format, mode and `requires_grad` of the old one.

    Args:
        rewrite: what stands in its place.
        old: the layer, with a `weight` and perhaps a `bias`.
        fitted: start from the old weights; else as torch initialises, drawn from its generator.
    """
    like: Any = old
    weight: Tensor = like.weight
    layers: dict[str, Any] = {name: spec.layer() for name, spec in rewrite.parts}
    for layer in layers.values():
        layer.to(device=weight.device, dtype=weight.dtype)
        layer.weight.requires_grad_(weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(weight.requires_grad if like.bias is None else like.bias.requires_grad)
    if fitted and not weight.is_meta:
        _fill(rewrite, layers, like)
    if rewrite.joined == "ghost":
        new: nn.Module = Ghosts(**layers)
    elif rewrite.joined == "fire":
        new = Expanded(**layers)
    else:
        new = _chain(rewrite, layers, weight)
    last = _CHANNELS_LAST.get(weight.dim())
    if last is not None and weight.is_contiguous(memory_format=last) and not weight.is_contiguous():
        new.to(memory_format=last)
    return new.train(old.training)


def _chain(rewrite: Replacement, layers: dict[str, Any], like: Tensor) -> nn.Module:
    chain: list[tuple[str, nn.Module]] = []
    for place, (name, spec) in enumerate(rewrite.parts):
        chain.append((name, layers[name]))
        if rewrite.norm and place + 1 < len(rewrite.parts):
            norm = _NORMS[spec.dims](spec.outputs).to(device=like.device, dtype=like.dtype)
            chain += [(f"{name}_norm", norm.requires_grad_(like.requires_grad)), (f"{name}_act", nn.ReLU(inplace=True))]
    if rewrite.shuffle > 1:
        chain.append(("shuffle", nn.ChannelShuffle(rewrite.shuffle)))
    return chain[0][1] if len(chain) == 1 else nn.Sequential(OrderedDict(chain))


@torch.no_grad()
def _fill(rewrite: Replacement, layers: dict[str, Any], old: Any) -> None:
    """The old weights, as near as the parts come to them, and the old bias."""
    found = rewrite.weights(plain(old.weight.detach(), getattr(old, "groups", 1), getattr(old, "transposed", False)))
    for (name, spec), own in zip(rewrite.parts, found, strict=True):
        layers[name].weight.copy_(stored(own, spec))
        if layers[name].bias is not None:
            layers[name].bias.zero_()
    if old.bias is not None:
        _spread_bias(rewrite, layers, old.bias.detach())


def _spread_bias(rewrite: Replacement, layers: dict[str, Any], bias: Tensor) -> None:
    """The old bias on the last part; where two are joined, each half on its own."""
    own = bias if rewrite.order is None else bias[list(rewrite.order)]
    half = len(own) // 2
    if rewrite.joined == "ghost":
        layers["primary"].bias.copy_(own[:half])
        # The second half is made of the first one's results, bias and all: what that gives is taken off.
        taps = layers["cheap"].weight.flatten(1)
        layers["cheap"].bias.copy_(own[half:] - taps[:, taps.shape[1] // 2] * own[:half])
    elif rewrite.joined == "fire":
        layers["expand1"].bias.copy_(own[:half])
        layers["expand3"].bias.copy_(own[half:])
    else:
        layers[rewrite.parts[-1][0]].bias.copy_(own)
