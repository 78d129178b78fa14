"""One channel repeated to the width of what it meets: however it is repeated, the width is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut
from helpers import Calls, conv

X = torch.randn(2, 3, 8, 8)
Meeting = Callable[[Tensor, Tensor], Tensor]


def gated(meet: Meeting) -> nn.Module:
    """A map of 16 channels, a gate of one that is computed from it, and how they meet."""
    def forward(self: Calls, x: Tensor) -> Tensor:
        y = self.a(x).relu()  # type: ignore[operator]
        return self.b(meet(y, self.g(y).sigmoid()))  # type: ignore[operator, no-any-return]

    return Calls(forward, a=conv(3, 16), g=conv(16, 1), b=conv(16, 5))


REPEATED: dict[str, Meeting] = {
    "broadcast": lambda y, g: y * g,
    "expand_as": lambda y, g: y * g.expand_as(y),
    "expand": lambda y, g: y * g.expand(-1, y.shape[1], -1, -1),
    "repeat": lambda y, g: y * g.repeat(1, y.shape[1], 1, 1),
    "tile": lambda y, g: y * g.tile(1, y.shape[1], 1, 1),
    "repeat_interleave": lambda y, g: y * g.repeat_interleave(y.shape[1], 1),
    "cat": lambda y, g: y * torch.cat([g] * y.shape[1], 1),
    "stack": lambda y, g: y * torch.stack([g[:, 0]] * y.shape[1], 1),
    "broadcast_to": lambda y, g: y * torch.broadcast_to(g, y.shape),
    "broadcast_tensors": lambda y, g: torch.mul(*torch.broadcast_tensors(y, g)),
    "computed": lambda y, g: y + (g.expand_as(y).relu() * 2 + 1).clone(),
    "compared": lambda y, g: torch.where(g.expand_as(y) > 0.5, y, torch.zeros_like(y)),
    "reshaped": lambda y, g: y * g.expand_as(y).contiguous().view(y.shape),
    "joined": lambda y, g: y * (g.expand_as(y) + g.expand_as(y).tanh()),
    "normalised maps": lambda y, _: functional.normalize(y, dim=3),
    "normalised gate": lambda y, g: y * functional.normalize(g, dim=1).expand_as(y),
    "a number": lambda y, _: y * torch.full((1, 1, 1, 1), 2.0).expand_as(y)}


@pytest.mark.parametrize("way", REPEATED)
def test_the_width_is_cut(way: str) -> None:
    cut = Cut(gated(REPEATED[way]), X)
    assert cut.kept("a.weight") == cut.kept("b.weight", 1) == cut.kept("g.weight", 1)
    assert cut.uncut("g.bias")


@pytest.mark.parametrize("meet", [
    lambda y, g: y * g.repeat(1, 16, 1, 1), lambda y, g: y * torch.cat([g] * 16, 1),
    lambda y, g: y * torch.stack([g[:, 0]] * 16, 1)], ids=["repeat", "cat", "stack"])
def test_a_number_of_copies_that_code_has_written_out_keeps_the_width(meet: Meeting) -> None:
    cut = Cut(gated(meet), X)
    assert cut.uncut("a.weight", "g.weight", "b.weight")
    assert any(left.name == "a" for left in cut.plan.left_alone)


def test_what_repeats_along_two_dimensions_and_is_permuted_in_between_is_cut() -> None:
    def meet(y: Tensor, g: Tensor) -> Tensor:
        rows = g.mean((2, 3)).unsqueeze(-1).expand(-1, y.shape[1], y.shape[2] * y.shape[3])
        return y * rows.reshape(y.shape)

    assert Cut(gated(meet), X).size("a.weight") < 16
