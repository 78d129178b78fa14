"""Teach torchslim two operations of one's own, cut a network that uses them, and see the cut proven.

Run it with `python examples/custom_operation.py`; docs/custom-operations.md explains it line by line.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torchslim as ts
from torchslim.rules.labels import LabelSpace
from torchslim.tracing.graph import Op

# Two operations. The first works on each channel by itself, with parameters by the channel; the second has weights
# that read all channels and make new ones, as a convolution's do.


@torch.library.custom_op("example::shift", mutates_args=())
def shift(x: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    """Move each channel's map to the right by its own number of steps, and scale it."""
    columns = (torch.arange(x.shape[3], device=x.device) - steps[:, None]) % x.shape[3]
    return x.gather(3, columns[None, :, None, :].expand_as(x)) * scale[:, None, None]


@shift.register_fake
def _(x: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("example::mix", mutates_args=())
def mix(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution, of our own making: (N, in, H, W) and (in, out) give (N, out, H, W)."""
    return torch.einsum("nihw,io->nohw", x, weight)


@mix.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1], *x.shape[2:])


# How channels move through them, and what they cost.


def shift_labels(space: LabelSpace, op: Op) -> None:
    """Channels pass; the steps and the scale have one number for each, so they lose what the channels lose."""
    x, steps, scale = op.args
    channels = space.along(x, 1, op)
    for parameter in (steps, scale):
        space.tie(channels, space.along(parameter, 0, op), op, "shifts channels that can't be cut")
    space.set_along(op.output, 1, channels)


def mix_macs(op: Op) -> int:
    """Each weight meets each position once."""
    x, weight = op.args
    return weight.numel * x.numel // x.shape[1]


def mix_labels(space: LabelSpace, op: Op) -> None:
    """The weight reads channels along its first dimension and makes new ones along its second."""
    x, weight = op.args
    positions = x.shape[2] * x.shape[3]
    read, made = space.along(weight, 0, op), space.along(weight, 1, op)
    space.tie(space.along(x, 1, op), read, op, "reads channels that can't be cut")
    if read is not None:
        space.reads(weight, read, positions)
    if made is not None:
        space.makes(made, positions)
    space.set_along(op.output, 1, made)
    space.meter(op, mix_macs(op), (read, made))


ts.register_rule("example::shift", labels=shift_labels)
ts.register_rule("example::mix", labels=mix_labels, cost=mix_macs)


class Block(nn.Module):
    """Shift, then mix: a 3x3 convolution's poor relation."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.arange(width) % 3 - 1)
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.weight = nn.Parameter(torch.randn(width, out) / width**0.5)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """One step."""
        return self.norm(mix(shift(x, self.steps, self.scale), self.weight)).relu()


def main() -> None:
    """Cut a small network to half its multiply-adds, and print what belonged together and how exact the cut is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(16, 24), Block(24, 24), nn.Conv2d(24, 5, 1)).eval()
    inputs = torch.randn(1, 3, 32, 32)
    print(ts.groups(model, inputs))
    plan = ts.plan(model, inputs, macs=0.5)
    slim = ts.apply(model, plan)
    before, after = ts.profile(model, inputs), ts.profile(slim, inputs)
    print(f"multiply-adds: {before.macs:,} -> {after.macs:,}, as planned: {plan.predicted['macs']:,}")
    print(f"operations without a rule: {', '.join(after.unknown) or 'none'}")
    print(f"differs from the silenced original by {ts.verify(model, slim, plan, inputs):.1e}")


if __name__ == "__main__":
    main()
