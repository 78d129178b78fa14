"""Structural re-parameterisation, of RepVGG (Ding et al. 2021) and MobileOne (Vasu et al. 2023)."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.blocks.common import Act, Norm, activation, are_positive_ints, keeps_shape, norm_layers, size_pair
from torchslim.blocks.convolution import ConvNormAct
from torchslim.errors import RequestError
from torchslim.formulas import Size


class RepBlock(nn.Module):
    """A sum of convolutions with norms, a 1x1 one, and a norm of the input; `fuse` makes it one convolution.

    RepVGG (Ding et al. 2021), section 3; several branches of one kind: MobileOne (Vasu et al. 2023), "MobileOne Block".

    Args:
        in_channels, out_channels: at the input and at the output.
        kernel_size: an odd int, or (height, width) of them.
        stride, dilation, groups: of all branches; groups=in_channels makes them depthwise. The padding is "same", so
            that the branches align.
        branches: number of convolutions of that kernel.
        pointwise: whether there is a 1x1 branch; never for kernels of 1.
        identity: whether there is a branch of only a norm, if shapes agree.
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none. Only batch norms can be fused.
        act: called with nothing, makes an activation after the sum; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: no branch, an even kernel, or what `ConvNormAct` refuses.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1, *,
                 dilation: int = 1, groups: int = 1, branches: int = 1, pointwise: bool = True, identity: bool = True,
                 bias: bool | None = None, norm: Norm = nn.BatchNorm2d, act: Act = None) -> None:
        super().__init__()
        if not are_positive_ints(branches):
            raise RequestError(f"RepBlock: {branches} branches found, a whole number of at least 1 wanted")
        kernels = [kernel_size] * branches + [1] * (pointwise and size_pair(kernel_size) != (1, 1))
        first, *others = (ConvNormAct(in_channels, out_channels, size, stride, dilation=dilation, groups=groups,
                                      bias=bias, norm=norm, act=None) for size in kernels)
        self.first, self.others = first, nn.ModuleList(others)
        if identity and keeps_shape(stride, in_channels, out_channels):
            self.others.append(nn.Sequential(*norm_layers(norm, in_channels)))
        if not all(size % 2 for size in size_pair(kernel_size)):
            raise RequestError(f"RepBlock: kernel_size={kernel_size} found, an odd number wanted, in whose middle the "
                               "other branches are; take 3")
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.first(x)
        for branch in self.others:
            y = y + branch(x)
        out: Tensor = self.act(y)
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d | nn.Sequential:
        """A new convolution, with its own weights, that equals this block in eval mode.

        Followed by a copy of the block's activation, if any. The block is not changed. Device, data type, memory
        format, mode and `requires_grad` are those of the first branch.

        Raises:
            RequestError: a norm other than a batch norm with running statistics.
        """
        first = cast(nn.Conv2d, self.first[0])  # the result has its sizes
        weight, requires_grad = first.weight, any(parameter.requires_grad for parameter in first.parameters())
        kernels, biases = zip(*(_fuse_branch(branch, _exact(weight)) for branch in (self.first, *self.others)),
                              strict=True)
        conv = nn.Conv2d(first.in_channels, first.out_channels, size_pair(first.kernel_size), size_pair(first.stride),
                         size_pair(cast(Size, first.padding)), size_pair(first.dilation), first.groups, device="meta")
        conv.weight = nn.Parameter(torch.empty_like(weight).copy_(torch.stack(kernels).sum(0)), requires_grad)
        conv.bias = nn.Parameter(torch.stack(biases).sum(0).to(weight), requires_grad)
        fused = conv if isinstance(self.act, nn.Identity) else nn.Sequential(conv, copy.deepcopy(self.act))
        return fused.train(self.training)


def _fuse_branch(branch: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The equivalent kernel, of the shape of `weight`, and bias of one branch, in float64."""
    layers = list(branch.children())
    outputs, inputs, *size = weight.shape
    bias = weight.new_zeros(outputs)
    if layers and isinstance(layers[0], nn.Conv2d):
        kernel, norms = _exact(layers[0].weight), layers[1:]
        bias = bias if layers[0].bias is None else _exact(layers[0].bias)
    else:  # the identity: each output is the input of equal index
        channels, norms = torch.arange(outputs, device=weight.device), layers
        kernel = weight.new_zeros(outputs, inputs, 1, 1)
        kernel[channels, channels % inputs] = 1
    for norm in norms:
        scale, shift = _scale_and_shift(norm)
        kernel, bias = kernel * scale[:, None, None, None], bias * scale + shift
    height, width = ((large - small) // 2 for large, small in zip(size, kernel.shape[2:], strict=True))
    return pad(kernel, (width, width, height, height)), bias


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The scale and the shift of a batch norm in eval mode."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise RequestError(f"RepBlock: {type(norm).__name__} found, a batch norm with running statistics wanted; only "
                           "these can be fused")
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -_exact(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + _exact(norm.bias)


def _exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: some accelerators have no float64."""
    return tensor.to("meta" if tensor.is_meta else "cpu", torch.float64)
