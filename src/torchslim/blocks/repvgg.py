"""Branches for training that become one convolution, of RepVGG (Ding et al. 2021) and MobileOne (Vasu et al. 2023)."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.blocks.common import Act, Norm, activation, counts, normed, stays, two
from torchslim.blocks.convolution import ConvNormAct
from torchslim.errors import RequestError
from torchslim.formulas import Size


class RepBlock(nn.Module):
    """A sum of convolutions, each with its norm, a 1x1 one and a norm of the input; `fuse` makes it one convolution.

    RepVGG (Ding et al. 2021), section 3; several branches of one kind: MobileOne (Vasu et al. 2023), "MobileOne Block".

    Args:
        in_channels, out_channels: at the input and at the output.
        kernel_size: an odd int, or (height, width) of them.
        stride, dilation, groups: of all branches; groups=in_channels makes them depthwise. The padding is "same", since
            the branches must see one map.
        branches: how many convolutions of that kernel.
        pointwise: whether there is a 1x1 branch; never for kernels of 1.
        identity: whether there is a branch of a norm alone, where stride and width stay.
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
        if not counts(branches):
            raise RequestError(f"RepBlock: {branches} branches found, a whole number of at least 1 wanted")
        kernels = [kernel_size] * branches + [1] * (pointwise and two(kernel_size) != (1, 1))
        first, *others = (ConvNormAct(in_channels, out_channels, size, stride, dilation=dilation, groups=groups,
                                      bias=bias, norm=norm, act=None) for size in kernels)
        self.first, self.others = first, nn.ModuleList(others)
        if identity and stays(stride, in_channels, out_channels):
            self.others.append(nn.Sequential(*normed(norm, in_channels)))
        if not all(size % 2 for size in two(kernel_size)):
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
        """A new convolution, with its own weights, that gives what this block gives in eval mode.

        Where the block has an activation, the convolution and a copy of it in a row. The block stays as it is. Device,
        data type, memory format, mode and `requires_grad` are those of the first branch.

        Raises:
            RequestError: a norm that is no batch norm with running statistics.
        """
        first = cast(nn.Conv2d, self.first[0])  # its sizes are those of the result
        weight, learns = first.weight, any(parameter.requires_grad for parameter in first.parameters())
        branches = (self.first, *self.others)
        kernels, biases = zip(*(_fused(branch, _exact(weight)) for branch in branches), strict=True)
        made = nn.Conv2d(first.in_channels, first.out_channels, two(first.kernel_size), two(first.stride),
                         two(cast(Size, first.padding)), two(first.dilation), first.groups, device="meta")
        made.weight = nn.Parameter(torch.empty_like(weight).copy_(torch.stack(kernels).sum(0)), learns)
        made.bias = nn.Parameter(torch.stack(biases).sum(0).to(weight), learns)
        fused = made if isinstance(self.act, nn.Identity) else nn.Sequential(made, copy.deepcopy(self.act))
        return fused.train(self.training)


def _fused(branch: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel and the bias that one branch amounts to, the kernel as large as `like` and, as it is, in float64."""
    layers = list(branch.children())
    outputs, inputs, *size = like.shape
    bias = like.new_zeros(outputs)
    if layers and isinstance(layers[0], nn.Conv2d):
        kernel, norms = _exact(layers[0].weight), layers[1:]
        bias = bias if layers[0].bias is None else _exact(layers[0].bias)
    else:
        channels, norms = torch.arange(outputs, device=like.device), layers
        kernel = like.new_zeros(outputs, inputs, 1, 1)
        kernel[channels, channels % inputs] = 1  # each reads itself, by its place in its group
    for norm in norms:
        scale, shift = _line(norm)
        kernel, bias = kernel * scale[:, None, None, None], bias * scale + shift
    height, width = ((large - small) // 2 for large, small in zip(size, kernel.shape[2:], strict=True))
    return pad(kernel, (width, width, height, height)), bias


def _line(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by and adds in eval mode."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise RequestError(f"RepBlock: {type(norm).__name__} found, a batch norm with running statistics wanted; only "
                           "these can be fused")
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -_exact(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + _exact(norm.bias)


def _exact(tensor: Tensor) -> Tensor:
    # Some accelerators have no float64.
    return tensor.to("meta" if tensor.is_meta else "cpu", torch.float64)
