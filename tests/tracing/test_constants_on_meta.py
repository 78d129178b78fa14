"""A run on shapes computes with a model's own constants, and leaves them as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchslim.proof.float64 import in_float64
from torchslim.tracing.trace import trace

X = torch.randn(1, 3, 8, 8)


class Constants(nn.Module):
    """Asks its own numbers what to do."""

    strides: Tensor

    def __init__(self, ask: Callable[[Constants, Tensor], Tensor]) -> None:
        super().__init__()
        self.ask = ask
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("strides", torch.tensor([2.0, 4.0]))
        self.register_buffer("large", torch.arange(5000.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(self, self.conv(x))


def by_item(m: Constants, x: Tensor) -> Tensor:
    return x.relu() if (m.strides[1] / m.strides[0]).item() == 2 else x.tanh()


def by_full(m: Constants, x: Tensor) -> Tensor:
    return x + torch.full((4, 1, 1), m.strides.max() * 2)  # type: ignore[call-overload, no-any-return]


def written_view(m: Constants, x: Tensor) -> Tensor:
    m.strides[:1].add_(5)
    return x.relu()


def written_then_asked(m: Constants, x: Tensor) -> Tensor:
    m.strides.add_(5)
    return x.relu() if m.strides[0].item() == 7 else x.tanh()


@pytest.mark.parametrize(("ask", "device", "last"), [
    (by_item, "meta", "aten.relu"), (by_full, "meta", "aten.add"), (written_view, "meta", "aten.relu"),
    (written_then_asked, "real", "aten.relu"),
    (lambda m, x: x.relu() if m.large.sum().item() > 0 else x.tanh(), "real", "aten.relu"),
    (lambda m, x: x.relu() if m.conv.bias.sum().item() > 99 else x.tanh(), "real", "aten.tanh"),
    (lambda m, x: x.relu() if x.sum().item() > 1e9 else x.tanh(), "real", "aten.tanh")])
def test_small_constants_are_computed_with(ask: Callable[[Constants, Tensor], Tensor], device: str, last: str) -> None:
    model = Constants(ask).eval()
    before = model.strides.clone()
    graph = trace(model, X)
    assert (graph.device, graph.ops[-1].name) == (device, last)
    assert torch.equal(model.strides, before)


class Converts(nn.Module):
    """Keeps a plain tensor in the type of its input, as networks for restoration keep their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.conv = torch.zeros(1, 3, 1, 1), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        return self.conv(x - self.mean)  # type: ignore[no-any-return]


@pytest.mark.parametrize("meta", [True, False])
def test_a_run_in_float64_leaves_narrower_tensors_as_they_are(meta: bool) -> None:
    model = Converts().double()
    with in_float64():
        trace(model, X.double(), meta=meta)
    assert model.mean.dtype == torch.float32
