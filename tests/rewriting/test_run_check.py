"""Networks whose code asks a layer for more than its outputs run as before, or that layer stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import Calls, Untouched, conv
from torchslim.errors import RequestError, TraceError
from torchslim.rewriting import lighten_with_report

X = torch.randn(2, 3, 8, 8)


def dtype(self: Any, x: Tensor) -> Tensor:
    return self.c(self.b(x.to(self.b.weight.dtype)))


def width(self: Any, x: Tensor) -> Tensor:
    y = self.b(x)
    return self.c(y.reshape(len(y), self.b.out_channels, 8, 8))


def kind(self: Any, x: Tensor) -> Tensor:
    if not isinstance(self.b, nn.Conv2d):
        raise TypeError(f"{type(self.b).__name__}\nis no convolution")
    return self.c(self.b(x))


def shortcut(self: Any, x: Tensor) -> Tensor:
    return self.c(self.b(x) if isinstance(self.b, nn.Conv2d) else x)


def shape(self: Any, x: Tensor) -> Tensor:
    y = self.c(self.b(x))
    return y if isinstance(self.b, nn.Conv2d) else y[:1]


def other(self: Any, x: Tensor) -> Tensor:
    y = self.c(self.b(x))
    return self.act(y) if isinstance(self.b, nn.Conv2d) else y


def scale(self: Any, x: Tensor) -> Tensor:
    return self.c(self.b(x) * 2 if isinstance(self.b, nn.Conv2d) else self.b(x))


def made(middle: Callable[..., Tensor]) -> nn.Module:
    return nn.Sequential(conv(3, 8), Calls(middle, a=conv(8, 8), b=conv(8, 8), c=conv(8, 8), act=nn.ReLU()),
                         conv(8, 4)).eval()


@pytest.mark.parametrize(("middle", "reason"), [
    (dtype, "the network reads its `weight`"), (width, "the network reads its `out_channels`"),
    (kind, "the network no longer runs with it: TypeError: Sequential"),
    (shortcut, "the network no longer calls what is in its place"),
    (shape, "the network's outputs have other shapes with it"), (other, "`1.act` no longer runs as often with it"),
    (scale, "the network computes something else with it")])
@pytest.mark.parametrize("options", [{"inputs": X}, {"data": [X, X]}], ids=["inputs", "data"])
def test_layers_that_the_code_asks_stay_as_they_were(
        middle: Callable[..., Tensor], reason: str, options: dict[str, Any]) -> None:
    model = made(middle)
    before = Untouched(model)
    found = lighten_with_report(model, "separable", **options)
    before.check()
    assert [row.layer for row in found.layers] == ["1.a", "1.c"]
    assert dict(found.left_alone)["1.b"] == f"separable: {reason}"
    assert found.steps[0].layers == ("1.a", "1.c")  # type: ignore[union-attr]
    assert found.model(X).shape == model(X).shape
    torch.testing.assert_close(found.model.get_parameter("1.b.weight"), model.get_parameter("1.b.weight"))


def test_several_are_found_and_the_rules_that_follow_meet_them_anew() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c, self.d, self.e):
            x = layer(x)
        return x * self.b.out_channels / len(self.d.weight) + float(hasattr(self.e, "stride") or x[:, :, 9:].item())

    names = ("a", "b", "c", "d", "e")
    model = nn.Sequential(conv(3, 8), Calls(forward, **{name: conv(8, 8) for name in names}), conv(8, 4))
    found = lighten_with_report(model, ["separable", ("grouped:2", ["1.b", "1.d", "1.e"])], X)
    assert [(row.layer, row.rule) for row in found.layers] == [
        ("1.a", "separable"), ("1.c", "separable"), ("1.b", "grouped:2"), ("1.d", "grouped:2"), ("1.e", "grouped:2")]
    assert {name for name, reason in found.left_alone if reason.startswith("separable")} == {"1.b", "1.d", "1.e"}
    assert found.model(X).shape == (2, 4, 8, 8)


def test_a_network_of_which_nothing_is_left_to_rewrite_is_refused() -> None:
    with pytest.raises(RequestError, match=r"`1.b`: separable: the network reads its `weight`"):
        ts.lighten(made(dtype), "separable", X, only=["1.b"])


def test_a_network_that_did_not_run_before_is_no_fault_of_a_rewrite() -> None:
    with pytest.raises(TraceError, match="failed while the model was run on the given inputs"):
        ts.lighten(made(dtype), "separable", torch.randn(1, 5, 8, 8))
