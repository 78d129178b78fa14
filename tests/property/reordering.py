"""Blocks that bring a map's channels into another order, or join copies of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def unshuffled(x: Tensor) -> Tensor:
    """Each pixel of a square of four becomes a channel; the map is brought to its size again."""
    return functional.interpolate(functional.pixel_unshuffle(x, 2), scale_factor=2.0)


def product_of_halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([a, b, a * b], 1)


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "joined with its mirror image": (lambda x: torch.cat([x, x.flip(1)], 1), 2),
    "joined with itself": (lambda x: torch.cat([x, x * 2], 1), 2),
    "repeated": (lambda x: x.repeat(1, 2, 1, 1), 2),
    "each channel twice": (lambda x: x.repeat_interleave(2, 1), 2),
    "rolled": (lambda x: x.roll(x.shape[1] // 2, 1), 1),
    "halves exchanged": (lambda x: torch.cat(list(x.chunk(2, 1))[::-1], 1), 1),
    "a part again": (lambda x: torch.cat([x, x[:, : x.shape[1] // 2]], 1), 1.5),
    "both signs": (lambda x: torch.cat([x.relu(), (-x).relu()], 1), 2),
    "unshuffled": (unshuffled, 4),
    "product of halves": (product_of_halves, 1.5),
}
"""By what is done: the function, and how many times as many channels there are afterwards."""


class Reordered(nn.Module):
    """Channels come in another order, some of them more than once."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.ways = ways

    def forward(self, x: Tensor) -> Tensor:
        for way in self.ways:
            x = WAYS[way][0](x)
        return x
