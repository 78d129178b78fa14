"""Functions between two convolutions that work along space, or on halves of the channels: the channels are cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut
from helpers import Calls, conv

X = torch.randn(2, 3, 12, 12)
FILTER = torch.randn(12, 7, dtype=torch.complex128)


def between(function: Callable[[Tensor], Tensor], width: int = 16, out: int = 16) -> nn.Module:
    def forward(self: Calls, x: Tensor) -> Tensor:
        return self.b(function(self.a(x)))  # type: ignore[operator, no-any-return]

    return Calls(forward, a=conv(3, width), b=conv(out, 5))


def unpooled(x: Tensor) -> Tensor:
    return functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2)


def filtered(x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x.double()) * FILTER, s=(12, 12)).to(x.dtype)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logsigmoid": functional.logsigmoid, "max_unpool2d": unpooled, "rot90": lambda x: x.rot90(1, (2, 3)),
    "sort": lambda x: x.sort(3).values, "topk": lambda x: x.topk(4, 3).values,
    "median": lambda x: x - x.median(3, keepdim=True).values, "median of maps": lambda x: x - x.flatten(2).median(
        2).values[..., None, None], "quantile": lambda x: x - x.quantile(0.5, 3, keepdim=True),
    "cummax": lambda x: x.cummax(3).values, "cumprod": lambda x: x.cumprod(3),
    "gather": lambda x: x.gather(3, x.argsort(3)), "take_along_dim": lambda x: x.take_along_dim(
        x.argmax(3, keepdim=True), 3) + x, "scatter_add": lambda x: x.scatter_add(3, x.argsort(3), x),
    "Fourier filter": filtered, "amplitude": lambda x: torch.fft.fft2(x).abs(), "complex pairs": lambda x: torch.
    view_as_real(torch.view_as_complex(x.reshape(*x.shape[:3], 6, 2)) ** 2).flatten(3),
    "tril": torch.tril, "diagonal": lambda x: x.diagonal(dim1=2, dim2=3).unsqueeze(-1),
    "fold": lambda x: functional.fold(functional.unfold(x, 2, stride=2), (12, 12), 2, stride=2),
    "3D pooling across maps": lambda x: functional.max_pool3d(x.unsqueeze(1), (1, 2, 2)).squeeze(1),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([0.0, 1.0]).to(x)).to(x.dtype) + x}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_works_along_space_lets_channels_go(name: str) -> None:
    cut = Cut(between(FUNCTIONS[name]), X)
    assert cut.kept("a.weight") == cut.kept("b.weight", 1)


@pytest.mark.parametrize("dim", [1, -3])
def test_gated_halves_lose_equally_many(dim: int) -> None:
    cut = Cut(between(lambda x: functional.glu(x, dim), width=32), X)
    kept, read = cut.kept("a.weight"), cut.kept("b.weight", 1)
    assert kept == (*read, *(channel + 16 for channel in read))


def test_gated_halves_of_a_linear_layer() -> None:
    cut = Cut(nn.Sequential(nn.Linear(6, 32), nn.GLU(), nn.Linear(16, 4)), torch.randn(5, 6))
    assert cut.size("0.weight") == 2 * cut.size("2.weight", 1)


@pytest.mark.parametrize("function", [
    lambda x: torch.fft.fft(x, dim=1).real, lambda x: x.sort(1).values, lambda x: x.cumprod(1),
    lambda x: x.renorm(2, 0, 1.0), lambda x: x.gather(1, x.argsort(1))])
def test_what_works_along_channels_keeps_them_by_name(function: Callable[[Tensor], Tensor]) -> None:
    cut = Cut(between(function), X)
    assert cut.uncut("a.weight", "b.weight")
    assert any(left.name == "a" and "in `model` (aten." in left.reason for left in cut.plan.left_alone)


@pytest.mark.parametrize("size", [3, 4])
def test_a_local_response_norm_sees_the_channels_that_stay(size: int) -> None:
    norm = nn.LocalResponseNorm(size, alpha=2.0)
    cut = Cut(nn.Sequential(conv(3, 16), norm, conv(16, 5)), X, macs=0.5, allow_approximate=True, oracle=False)
    kept = list(cut.kept("0.weight"))
    read = cut.model[2]
    with torch.no_grad():
        expected = functional.conv2d(norm(cut.model[0](X)[:, kept]), read.weight[:, kept], read.bias, padding=1)
        assert torch.allclose(cut.slim(X), expected, atol=1e-4)
