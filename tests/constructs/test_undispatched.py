"""What no dispatched operation shows: weights that forward assigns, and numbers that code outside torch computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchslim as ts
from constructs.cutting import Cut
from helpers import Calls, conv
from torchslim.errors import UnsupportedModel

X = torch.randn(2, 3, 8, 8)


class Merged(nn.Module):
    """Two layers in train mode, which eval mode merges into one by `assign(layer, weight, bias)`."""

    def __init__(self, cin: int, cout: int, assign: Callable[[nn.Module, Tensor, Tensor], Any], on_data: bool) -> None:
        super().__init__()
        self.a, self.b, self.merged = conv(cin, cout), conv(cin, cout, 1), conv(cin, cout)
        self.assign = assign
        if on_data:
            self.register_buffer("merges", torch.tensor(True))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.a(x) + self.b(x)  # type: ignore[no-any-return]
        if not getattr(self, "merges", True):  # which no run on shapes can tell
            return x
        with torch.no_grad():
            self.assign(self.merged, self.a.weight + functional.pad(self.b.weight, (1, 1, 1, 1)),
                        self.a.bias.data + self.b.bias.data)  # type: ignore[union-attr, operator]
        return self.merged(x)  # type: ignore[no-any-return]


def data(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight.data, layer.bias.data = weight, bias.contiguous()


def copy(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.data.copy_(bias)


def by_index(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight.data[:] = weight
    layer.bias[...] = bias


def in_place(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight.zero_().add_(weight)
    torch.add(bias, 0, out=layer.bias.detach())


def set_(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight.set_(weight)
    layer.bias.set_(bias)


def parameters(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)


def state(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.load_state_dict({"weight": weight, "bias": bias})


@pytest.mark.parametrize("assign", [data, copy, by_index, in_place, set_, parameters, state])
@pytest.mark.parametrize("on_data", [False, True], ids=["shapes", "data"])
def test_assigned_weights_are_cut_with_their_sources(assign: Any, on_data: bool) -> None:
    cut = Cut(nn.Sequential(Merged(3, 16, assign, on_data), nn.ReLU(), Merged(16, 12, assign, on_data), nn.ReLU(),
                            conv(12, 4)), X, macs=0.5)
    assert cut.size("0.merged.weight") == cut.size("0.a.weight") == cut.size("2.b.weight", 1)
    assert cut.size("2.merged.weight", 1) == cut.size("2.a.weight", 1)
    assert cut.size("2.b.bias") == cut.size("4.weight", 1)


def summed(self: Any, x: Tensor) -> Tensor:
    y = functional.conv2d(self.a(x).relu(), self.b.weight + self.c.weight.exp(), padding=1)
    return self.d(y.relu())  # type: ignore[no-any-return]


def called(self: Any, x: Tensor) -> Tensor:
    y = torch.func.functional_call(self.c, {"weight": self.b.weight.exp()}, (self.a(x).relu(),))
    return self.d(y.relu())  # type: ignore[no-any-return]


def buffered(self: Any, x: Tensor) -> Tensor:
    self.c.weight.data.copy_(self.b.weight.detach().exp())
    return self.d(self.c(self.a(x).relu()).relu())  # type: ignore[no-any-return]


def clamped(self: Any, x: Tensor) -> Tensor:
    self.c.weight.data.clamp_(0.01, 1)  # so zeros do not stay
    return self.d(self.b(self.a(x).relu()) + self.c(self.a(x).relu()))  # type: ignore[no-any-return]


def grown(self: Any, x: Tensor) -> Tensor:
    self.c.weight.data = functional.pad(self.b.weight, (1, 1, 1, 1)).exp()
    return self.d(self.c(self.a(x).relu()).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [summed, called, buffered, clamped, grown])
def test_weights_computed_of_layers_are_silenced_where_they_are_read(forward: Any) -> None:
    network = Calls(forward, a=conv(3, 16), b=conv(16, 12, bias=False), c=conv(16, 12), d=conv(12, 4))
    cut = Cut(network, X, macs=0.5, oracle=False)
    assert cut.size("b.weight", 1) == cut.size("a.weight")
    assert cut.size("d.weight", 1) == cut.size("b.weight")


def test_what_is_read_after_an_assignment_is_what_was_assigned() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.b.weight.data = self.c.weight.data * 2
        self.b.weight.data.add_(1)
        return self.d(functional.conv2d(self.a(x), self.b.weight.data, padding=1))  # type: ignore[no-any-return]

    cut = Cut(Calls(forward, a=conv(3, 16), b=conv(16, 12), c=conv(16, 12), d=conv(12, 4)), X, oracle=False)
    assert cut.size("c.weight", 1) == cut.size("b.weight", 1) == cut.size("a.weight")


# --- code outside torch -------------------------------------------------------------------------------------

@pytest.mark.parametrize("read", [
    lambda y: y * float(y.detach().cpu().numpy().mean()), lambda y: torch.from_numpy(y.numpy() * 2),
    lambda y: torch.from_numpy(y.detach().numpy()), lambda y: y * float(np.asarray(y).sum()),
    lambda y: torch.as_tensor(np.tanh(y.numpy(), dtype=y.numpy().dtype)), lambda y: y + max(y.flatten().tolist()),
    lambda y: y * torch.tensor(y.mean((0, 2, 3)).tolist()).view(1, -1, 1, 1), lambda y: y * torch.from_dlpack(y),
    lambda y: y * y.untyped_storage()[0], lambda y: y * y.storage()[0]])
def test_what_code_outside_torch_reads_stays_by_name(read: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.b(read(self.a(x).relu())).relu())  # type: ignore[no-any-return]

    cut = Cut(Calls(forward, a=conv(3, 16), b=conv(16, 16), c=conv(16, 4)).requires_grad_(False), X, macs=0.6,
              training=False)
    assert any("read by code outside torch in `model` (Tensor." in reason for reason in cut.reasons("a"))
    assert cut.size("b.weight") == cut.size("c.weight", 1)
    assert cut.uncut("a.weight")


# --- transforms of torch.func, nested tensors, quantised networks --------------------------------------------

def image_by_image(self: Any, x: Tensor) -> Tensor:
    return self.c(torch.vmap(lambda image: self.b(self.a(image[None]).relu())[0])(x))  # type: ignore[no-any-return]


def weight_by_weight(self: Any, x: Tensor) -> Tensor:
    y, weights = self.a(x).relu(), torch.stack([self.b.weight, self.b2.weight])
    return self.c(torch.vmap(lambda weight: functional.conv2d(y, weight, padding=1))(weights).sum(0))  # type: ignore


def derivative(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.c(self.b(torch.func.jvp(torch.sin, (y,), (torch.ones_like(y),))[1]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [image_by_image, weight_by_weight, derivative])
def test_what_torch_func_transforms_is_followed(forward: Any) -> None:
    cut = Cut(Calls(forward, a=conv(3, 16), b=conv(16, 16, bias=False), b2=conv(16, 16, bias=False), c=conv(16, 4)), X,
              macs=0.5, oracle=False, training=False)
    assert cut.size("b.weight", 1) == cut.size("a.weight")
    assert cut.size("c.weight", 1) == cut.size("b.weight")


def nested(layout: torch.layout) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        rows = self.b(torch.nested.as_nested_tensor(list(self.a(x).flatten(2).mT), layout=layout))
        return torch.nested.to_padded_tensor(rows, 0.0)

    return Calls(forward, a=conv(3, 16), b=nn.Linear(16, 4))


def quantised(prepare: str, convert: bool = False) -> nn.Module:
    quantization = torch.ao.quantization
    network = nn.Sequential(quantization.QuantStub(), conv(3, 16), nn.ReLU(), conv(16, 4), quantization.DeQuantStub())
    network.train(prepare == "prepare_qat")
    network.qconfig = quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    getattr(quantization, prepare)(network, inplace=True)(X)
    return quantization.convert(network.eval()) if convert else network  # type: ignore[no-any-return]


def dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(conv(3, 16), nn.Flatten(), nn.Linear(1024, 8)),
                                                  {nn.Linear})  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "message"), [
    (lambda: nested(torch.strided), "`model`: works on a nested tensor"),
    (lambda: nested(torch.jagged), "`model`: works on a nested tensor"),
    (lambda: quantised("prepare"), "FakeQuantize watches or rounds for quantisation; prune the plain network"),
    (lambda: quantised("prepare_qat"), "`0.activation_post_process`: FusedMovingAvgObsFakeQuantize watches"),
    (lambda: quantised("prepare", convert=True), "`0` (aten.quantize_per_tensor): works on quantised values"),
    (dynamic, "`2` (quantized.linear_dynamic): works on quantised values, whose packed weights can't be cut")])
def test_nested_and_quantised_networks_are_refused_by_name(make: Callable[[], nn.Module], message: str) -> None:
    network = make().eval()
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    with pytest.raises(UnsupportedModel) as error:
        ts.prune(network, X, macs=0.5)
    assert message in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())


def test_a_network_with_stubs_for_later_quantisation_is_cut() -> None:
    network = nn.Sequential(torch.ao.quantization.QuantStub(), conv(3, 16), nn.ReLU(), conv(16, 4))
    assert Cut(network, X, macs=0.5).size("1.weight") < 16
