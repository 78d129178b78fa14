"""What a convolution or linear layer is, as a value: layer -> Spec -> layer; and its weight in one order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

CONVOLUTIONS: dict[type, tuple[int, bool]] = {
    nn.Conv1d: (1, False), nn.Conv2d: (2, False), nn.Conv3d: (3, False),
    nn.ConvTranspose1d: (1, True), nn.ConvTranspose2d: (2, True), nn.ConvTranspose3d: (3, True)}
"""Layers that rules may rewrite, with the dimensions of their maps, and whether they are transposed."""

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class LayerSpec:
    """All that builds a convolution; one of no dimensions is a linear layer.

    Attributes:
        inputs, outputs: channels.
        kernel, stride, dilation: one number a dimension of the map.
        padding: likewise, or "same" or "valid".
        output_padding: of a transposed convolution.
        groups: of channels.
        bias: whether there is one.
        transposed: whether it is a transposed convolution.
        padding_mode: as torch has it.
    """

    inputs: int
    outputs: int
    kernel: Sizes
    stride: Sizes
    padding: Sizes | str
    dilation: Sizes
    output_padding: Sizes
    groups: int
    bias: bool
    transposed: bool
    padding_mode: str

    @property
    def dims(self) -> int:
        """Dimensions of the map."""
        return len(self.kernel)

    @property
    def fan_in(self) -> int:
        """Input channels that one filter reads."""
        return self.inputs // self.groups

    @property
    def depthwise(self) -> bool:
        """True where every filter reads a single channel."""
        return self.groups == self.inputs > 1

    def along(self, dim: int) -> LayerSpec:
        """The part of it that works along one dimension of the map, the others left as they are."""
        def only(sizes: Sizes, otherwise: int) -> Sizes:
            return tuple(size if index == dim else otherwise for index, size in enumerate(sizes))

        padding = self.padding if isinstance(self.padding, str) else only(self.padding, 0)
        return replace(self, kernel=only(self.kernel, 1), stride=only(self.stride, 1), padding=padding,
                       dilation=only(self.dilation, 1), output_padding=only(self.output_padding, 0))

    def pointwise(self, inputs: int, outputs: int, *, groups: int = 1, bias: bool = False) -> LayerSpec:
        """A convolution of kernel 1 with the same number of dimensions."""
        ones, zeros = (1,) * self.dims, (0,) * self.dims
        return LayerSpec(inputs, outputs, ones, ones, zeros, ones, zeros, groups, bias, False, "zeros")

    @property
    def params(self) -> int:
        """Weights, without biases."""
        return self.fan_in * self.outputs * prod(self.kernel)

    def layer(self) -> nn.Module:
        """A fresh layer on the CPU, initialised as torch does."""
        if not self.dims:
            return nn.Linear(self.inputs, self.outputs, self.bias)
        common: dict[str, Any] = {
            "in_channels": self.inputs, "out_channels": self.outputs, "kernel_size": self.kernel,
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups,
            "bias": self.bias, "padding_mode": self.padding_mode}
        if self.transposed:
            common["output_padding"] = self.output_padding
        kind = next(kind for kind, form in CONVOLUTIONS.items() if form == (self.dims, self.transposed))
        built: nn.Module = kind(**common)
        return built


def spec_of(layer: nn.Module) -> LayerSpec | None:
    """The spec of a layer; None for one that does not compute as torch's convolutions and linear layers do."""
    return None if _kind(layer) is None else spec_from_attributes(layer)


def spec_from_attributes(layer: nn.Module) -> LayerSpec | None:
    """The spec that a layer's sizes tell, whatever else its class computes; None for no convolution or linear layer."""
    conv: Any = layer
    if isinstance(layer, nn.Linear):
        return LayerSpec(conv.in_features, conv.out_features, (), (), (), (), (), 1, conv.bias is not None, False,
                         "zeros")
    if not isinstance(layer, _ConvNd):
        return None
    padding = conv.padding if isinstance(conv.padding, str) else tuple(conv.padding)
    return LayerSpec(conv.in_channels, conv.out_channels, tuple(conv.kernel_size), tuple(conv.stride), padding,
                tuple(conv.dilation), tuple(conv.output_padding), conv.groups, conv.bias is not None,
                conv.transposed, conv.padding_mode)


# What a layer computes with, beside its parameters and sizes.
_WAYS = ("forward", "_conv_forward", "_output_padding", "__call__", "_call_impl", "__getattr__", "__getattribute__")


def _kind(layer: nn.Module) -> type | None:
    """torch's own class that a layer is of; a subclass is taken for it that has nothing of its own to compute with."""
    cls = type(layer)
    if "forward" in vars(layer):
        return None
    for kind in (nn.Linear, *CONVOLUTIONS):
        if cls is kind:
            return kind
        if issubclass(cls, kind) and not issubclass(cls, LazyModuleMixin):
            inherited = all(getattr(cls, way, None) is getattr(kind, way, None) for way in _WAYS)
            held = set(layer._parameters) == {"weight", "bias"} and not layer._buffers and not layer._modules
            return kind if inherited and held else None
    return None


def filters_first(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """A layer's weight as (N, M / groups, k, ...); of a transposed convolution torch stores (M, N / groups, k, ...)."""
    if not transposed:
        return weight
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def torch_layout(weight: Tensor, spec: LayerSpec) -> Tensor:
    """The other way round: as torch stores it."""
    return filters_first(weight, spec.groups, True) if spec.transposed else weight
