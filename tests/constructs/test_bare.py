"""No layers in the usual sense: functions, bare parameters, lambdas, in-place operations, buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut, Lambda
from helpers import Calls, conv

X = torch.randn(2, 3, 8, 8)


# Functions on bare parameters


class Functional(nn.Module):
    """Everything is a function of a parameter that hangs on the root, on a list, or in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(16, 3, 3, 3) * 0.3), nn.Parameter(torch.randn(16))
        self.scale, self.shift = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(16))
        self.register_buffer("mean", torch.randn(16) * 0.1)
        self.register_buffer("spread", torch.rand(16) + 0.5)
        self.listed = nn.ParameterList([torch.randn(24, 16, 3, 3) * 0.1, torch.randn(4, 24) * 0.1])
        self.named = nn.ParameterDict({"bias": torch.randn(24)})

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.kernel, self.bias, padding=1)
        x = functional.batch_norm(x, self.mean, self.spread, self.scale, self.shift, self.training)
        x = functional.conv2d(functional.relu(x, inplace=True), self.listed[0], self.named["bias"], padding=1)
        return functional.linear(x.relu_().mean((2, 3)), self.listed[1])


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_functions_on_bare_parameters(share: float) -> None:
    cut = Cut(Functional(), X, macs=share, oracle=False)
    first = cut.kept("kernel")
    assert {cut.kept(name) for name in ("bias", "scale", "shift", "mean", "spread")} == {first}
    assert cut.kept("listed.0", 1) == first
    assert cut.kept("listed.0") == cut.kept("named.bias") == cut.kept("listed.1", 1)
    assert all(isinstance(p, nn.Parameter) for p in cut.slim.listed)


class Bare(nn.Module):
    """Numbers of the author's own beside ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), conv(16, 24), nn.Linear(24, 4)
        self.gamma = nn.Parameter(torch.rand(16) + 0.5)
        self.mixing = nn.Parameter(torch.randn(24, 16) * 0.2)
        self.positions = nn.Parameter(torch.randn(1, 24, 8, 8))
        self.temperature = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu() * self.gamma[:, None, None]
        y = self.b(x) * self.temperature + torch.einsum("bchw,oc->bohw", x, self.mixing)
        return self.out((y + self.positions).relu().mean((2, 3)))


def test_bare_parameters_on_the_root() -> None:
    cut = Cut(Bare(), X, oracle=False)
    assert cut.kept("gamma") == cut.kept("a.weight") == cut.kept("mixing", 1)
    assert cut.kept("mixing") == cut.kept("b.weight") == cut.kept("positions", 1) == cut.kept("out.weight", 1)
    assert cut.after("positions")[2:] == (8, 8)
    assert cut.uncut("temperature")


def test_a_learnt_token_beside_the_pixels() -> None:
    """The token is joined to the pixels along the tokens: channels of both go together or stay, with the reason."""
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = conv(3, 12), conv(12, 16), nn.Linear(16, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 16))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x).relu()).flatten(2).mT
            return self.out(torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1).amax(1))

    cut = Cut(Token(), X)
    assert cut.size("a.weight") == cut.size("b.weight", 1)
    if "token" in cut.plan.kept:
        assert cut.kept("token", 2) == cut.kept("b.weight")
    else:
        assert any("`model` (aten.cat)" in reason for reason in cut.reasons("b"))


def test_layer_scale_on_channels_last() -> None:
    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.depthwise, self.out = conv(3, 16), conv(16, 16, groups=16), conv(16, 4)
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
            self.gamma = nn.Parameter(torch.rand(16))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.down(functional.gelu(self.up(self.depthwise(x).permute(0, 2, 3, 1)))) * self.gamma
            return self.out(x + y.permute(0, 3, 1, 2))

    cut = Cut(Next(), X)
    assert cut.kept("gamma") == cut.kept("stem.weight") == cut.kept("down.weight")
    assert cut.size("up.weight") == cut.size("down.weight", 1)
    assert cut.attribute_updates == {"depthwise.groups": (16, cut.size("gamma"))}


# nn.Sequential of lambdas


def test_a_sequence_of_lambdas() -> None:
    model = nn.Sequential(
        conv(3, 16), Lambda(lambda x: x.relu()), Lambda(lambda x: torch.cat([x, -x], 1).relu()), conv(32, 24),
        Lambda(functional.silu), Lambda(lambda x: functional.adaptive_avg_pool2d(x, 2)),
        Lambda(lambda x: x.view(x.size(0), -1)), nn.Linear(96, 4))
    cut = Cut(model, X)
    first = cut.kept("0.weight")
    assert cut.kept("3.weight", 1) == (*first, *(16 + one for one in first))
    assert cut.size("7.weight", 1) == 4 * cut.size("3.weight")


def test_a_lambda_with_a_number_in_it_freezes_and_is_named() -> None:
    model = nn.Sequential(conv(3, 16), Lambda(lambda x: x.view(-1, 16, 64)), Lambda(lambda x: x.view(-1, 16, 8, 8)),
                          conv(16, 24), Lambda(functional.silu), conv(24, 4))
    cut = Cut(model, X)
    assert cut.uncut("0.weight")
    assert cut.size("3.weight") == cut.size("5.weight", 1)
    assert any(reason.startswith("the slim network fails: `1` failed") for reason in cut.reasons("0"))


def test_a_lambda_that_lets_the_batch_absorb_the_width() -> None:
    """view(-1, 64) still runs on fewer channels, and mixes pictures: such a view is never trusted."""
    model = nn.Sequential(conv(3, 16), Lambda(lambda x: functional.adaptive_avg_pool2d(x, 2)),
                          Lambda(lambda x: x.view(-1, 64)), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4))
    cut = Cut(model, X)
    assert cut.uncut("0.weight")
    assert cut.reasons("0")
    assert cut.size("3.weight") == cut.size("5.weight", 1)


# In-place operations


def accumulated(s: nn.Module, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[0], s.b.out_channels, 8, 8, dtype=x.dtype)
    y = s.a(x).relu_()
    for part in (s.b(y), s.c(y)):
        total += part
    return s.out(total.mul_(0.5).relu_())


def overwritten(s: nn.Module, x: Tensor) -> Tensor:
    y = s.a(x).clamp_(min=0)
    z = torch.empty_like(y)
    z.copy_(y).add_(1)
    z[:] = z * 2
    z[:, :, 0] = 0
    z[:, :, :, 1:3] += y[:, :, :, 1:3].sigmoid()
    return s.out((s.b(z) + s.c(y)).relu_())


def halved(s: nn.Module, x: Tensor) -> Tensor:
    y = s.a(x).relu().clone()
    half = y.shape[1] // 2
    y[:, :half].mul_(2)
    y[:, half:] += 1
    return s.out((s.b(y) + s.c(y)).relu())


@pytest.mark.parametrize("forward", [accumulated, overwritten, halved], ids=lambda f: f.__name__)
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_in_place_operations(forward: Callable[..., Tensor], share: float) -> None:
    cut = Cut(Calls(forward, a=conv(3, 16), b=conv(16, 20), c=conv(16, 20), out=conv(20, 4)), X, macs=share)
    assert cut.kept("b.weight") == cut.kept("c.weight") == cut.kept("out.weight", 1)
    if forward is not halved:
        assert cut.kept("a.weight") == cut.kept("b.weight", 1) == cut.kept("c.weight", 1)
    else:
        assert "a.weight" in cut.plan.kept or any("`model` (aten.slice)" in reason for reason in cut.reasons("a"))


def test_activations_in_place_in_a_sequence() -> None:
    model = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True), conv(16, 24), nn.SiLU(inplace=True),
                          nn.Dropout(0.1, inplace=True), nn.Hardswish(inplace=True), conv(24, 4))
    cut = Cut(model, X)
    assert cut.size("0.weight") == cut.size("3.weight", 1)
    assert cut.size("3.weight") == cut.size("7.weight", 1)


# Buffers


def test_running_sums_that_a_module_writes_itself() -> None:
    """A buffer for every channel that training updates in place, and one that only counts."""
    class Centred(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.register_buffer("centre", torch.randn(1, width, 1, 1))
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                with torch.no_grad():
                    self.centre.mul_(0.9).add_(0.1 * x.mean((0, 2, 3), keepdim=True))
                    self.steps += 1
            return x - self.centre

    cut = Cut(nn.Sequential(conv(3, 16), Centred(16), nn.ReLU(), conv(16, 24), nn.ReLU(), conv(24, 4)), X)
    assert cut.kept("1.centre", 1) == cut.kept("0.weight")
    assert cut.slim[1].steps.shape == ()
    cut.slim.train()(X)
    assert cut.slim[1].steps == 1


def test_a_buffer_that_no_run_reads_is_left_as_it_is() -> None:
    model = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 4))
    model.register_buffer("history", torch.randn(16))
    cut = Cut(model, X)
    assert cut.uncut("history")
    assert cut.size("0.weight") < 16
