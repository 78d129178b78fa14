"""What every network must do: give its shape, train, script, compile as one graph, be cut and proven."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import check_training, counted_macs, in_turn, oracle_error, random_statistics
from torchslim import zoo
from torchslim.errors import RequestError
from torchslim.store.loading import build

# U-Net gives maps and asks for larger pictures
CLASSIFIERS = [name for name in zoo.NETWORKS if name != "unet"]
# what is deep and alike all the way is tried with few layers, and once as it is
SHALLOW = {"densenet_cifar": {"depth": 10}, "preresnet_cifar": {"depth": 20}, "resnet_cifar": {"depth": 14},
           "vgg_cifar": {"depth": 11}}
every = pytest.mark.parametrize("name", CLASSIFIERS)


def picture(name: str, channels: int = 3) -> Tensor:
    size = 32 if name.endswith("_cifar") else 64
    return torch.randn(2, channels, size, size)


def made(name: str, **options: Any) -> nn.Module:
    return ts.create_model(f"torchslim:{name}", **SHALLOW.get(name, {}), **options)


@pytest.mark.parametrize("rung", [0, 5, "separable-head"])
def test_the_unet_gives_ten_less_of_even_sizes_in_any_proportion(rung: int | str) -> None:
    with torch.device("meta"):
        network = ts.create_model("unet", num_classes=5, in_channels=1, rung=rung)
        for height, width in ((256, 256), (256, 250), (125, 140)):
            assert network(torch.empty(2, 1, height, width)).shape == (2, 5, (height + 1) // 2 * 2 - 10 - height % 2,
                                                                       (width + 1) // 2 * 2 - 10 - width % 2)


@every
def test_options_are_followed_and_every_parameter_learns(name: str) -> None:
    network, x = made(name, num_classes=7, in_channels=1), picture(name, 1)
    assert check_training(network, x) == {each for each, _ in network.named_parameters()}
    assert network.eval()(x).shape == (2, 7)


def test_every_parameter_of_the_unet_but_the_dead_ones_learns() -> None:
    network = ts.create_model("unet", rung=5)
    learnt = check_training(network, torch.randn(2, 3, 140, 140))
    assert {each for each, _ in network.named_parameters()} - learnt == {
        f"dead.{each}" for each, _ in network.dead.named_parameters()}


@pytest.mark.parametrize("rung", [*range(6), "separable", "separable-head"])
def test_the_unet_of_any_width_runs(rung: int | str) -> None:
    with torch.device("meta"):
        for width in (0.05, 0.3, 1.5):
            network = ts.create_model("unet", rung=rung, width=width).eval()
            assert network(torch.empty(1, 3, 125, 125)).shape == (1, 2, 115, 115)


# The same units at other widths and sizes.
@pytest.mark.parametrize("name", in_turn(CLASSIFIERS, [
    name for name in CLASSIFIERS if name.endswith("_cifar") or name in ("squeezenet1_1", "mobilenet_v3_small")]))
def test_scripts_and_compiles(name: str) -> None:
    network, x = made(name, num_classes=5).eval(), picture(name)
    if name in ("squeezenet1_1", "shufflenet_v2"):  # tracing the others takes long, all are alike
        torch.compiler.reset()
        assert torch.equal(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))
    assert torch.allclose(scripted(network)(x), network(x), atol=1e-5)


def test_the_unet_scripts() -> None:
    network, x = ts.create_model("unet", rung=4).eval(), torch.randn(1, 3, 125, 130)
    with torch.no_grad():
        assert torch.allclose(scripted(network)(x), network(x), atol=1e-5)


def scripted(network: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripting deprecated
        return torch.jit.script(network)


# Forms for 32x32 pictures have the units of their larger ones; widths, depths and groups in turn.
CUT = ("densenet_cifar", "densenet_cifar?growth=5&depth=13", "mobilenet_v1_cifar?width=0.25", "mobilenet_v2_cifar",
       "mobilenet_v3_small", "preresnet_cifar?depth=20", "resnet_cifar?depth=14",
       "resnet_cifar?shortcut=projected&depth=14", "shufflenet_v1_cifar?groups=1", "shufflenet_v1_cifar",
       "shufflenet_v1?groups=8", "shufflenet_v2_cifar?width=0.5", "squeezenet1_1", "squeezenet_cifar",
       "unet?rung=3&width=0.25", "unet?rung=5&width=0.25", "unet?rung=separable-head&width=0.25", "vgg_cifar?depth=11")


NIGHTLY = {"densenet_cifar", "mobilenet_v2_cifar", "shufflenet_v1_cifar?groups=1", "shufflenet_v1?groups=8",
           "unet?rung=3&width=0.25", "unet?rung=5&width=0.25", "resnet_cifar?depth=14", "squeezenet1_1"}


@pytest.mark.parametrize("spec", in_turn(CUT, set(CUT) - NIGHTLY))
def test_is_cut_and_proven(spec: str) -> None:
    name = spec.partition("?")[0]
    x = torch.randn(1, 3, 125, 125) if name == "unet" else picture(name)[:1]
    network = random_statistics(build(f"torchslim:{spec}", num_classes=10)).eval()
    plan = ts.plan(network, x, macs=0.5)
    slim = ts.apply(network, plan)
    assert ts.verify(network, slim, plan, x) < 1e-9
    if name != "unet":  # the same once more, by the tests' own oracle
        assert oracle_error(network, slim, plan, x) < 1e-9
    assert counted_macs(slim, x) <= 0.5 * counted_macs(network, x)
    assert len(plan.left_alone) == 2  # the picture's channels, the classes


REFUSED = (
    ("shufflenet_v2?width=0.75", "shufflenet_v2: width=0.75 found, one of 0.5, 1, 1.5, 2 wanted; try width=0.5"),
    ("shufflenet_v2_cifar?width=wide", "width='wide' found, one of 0.5, 1, 1.5, 2 wanted"),
    ("shufflenet_v1?groups=5", "shufflenet_v1: groups=5 found, one of 1, 2, 3, 4, 8 wanted; try groups=1"),
    ("shufflenet_v1_cifar?groups=[3]", "groups=[3] found, one of 1, 2, 3, 4, 8 wanted"),
    ("unet?rung=6", "unet: rung=6 found, one of 0, 1, 2, 3, 4, 5, separable, separable-head wanted"),
    ("unet?width=0", "unet: width=0 found, a positive number wanted"),
    ("mobilenet_v1?width=0", "mobilenet_v1: width=0 found, a positive number wanted; try width=0.5"),
    ("mobilenet_v1_cifar?width=1e999", "width=inf found, a positive number wanted"),
    ("mobilenet_v2?width=-1", "mobilenet_v2: width=-1 found, a positive number wanted"),
    ("mobilenet_v3_small?width='a'", "mobilenet_v3_small: width='a' found, a positive number wanted"),
    ("squeezenet_cifar?num_classes=0", "squeezenet_cifar: num_classes=0 found, a whole number of at least 1 wanted"),
    ("unet?in_channels=1.5", "unet: in_channels=1.5 found, a whole number of at least 1 wanted"),
    ("vgg_cifar?depth=18", "vgg_cifar: depth=18 found, one of 19, 16, 13, 11 wanted; try depth=19"),
    ("preresnet_cifar?depth=165", "preresnet_cifar: depth=165 found, 9n + 2 wanted; try depth=20"),
    ("densenet_cifar?depth=4", "densenet_cifar: depth=4 found, 3n + 4 wanted; try depth=10"),
    ("densenet_cifar?growth=0", "densenet_cifar: growth=0 found, a whole number of at least 1 wanted"),
    ("resnet_cifar?depth=56.0", "resnet_cifar: depth=56.0 found, 6n + 2 wanted; try depth=14"),
    ("resnet_cifar?shortcut=none", "shortcut='none' found, one of padded, projected wanted; try shortcut=padded"),
    ("vgg_cifar?scale=0", "vgg_cifar: scale=0 found, a positive number wanted; try scale=0.5"),
    ("mobilenet_v1?num_classes=True", "mobilenet_v1: num_classes=True found, a whole number of at least 1 wanted"),
    ("mobilenet_v1?width=True", "mobilenet_v1: width=True found, a positive number wanted"),
    ("unet?rung=True", "unet: rung=True found, one of 0, 1, 2, 3, 4, 5, separable, separable-head wanted"),
    ("squeezenet1_0?width=0.5", "torchslim:squeezenet1_0: the builder refused width=0.5"),
)


def test_wrong_options_are_refused_in_one_line() -> None:
    for spec, message in REFUSED:
        with pytest.raises(RequestError) as caught:
            build(f"torchslim:{spec}")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_numbers_may_be_numpys() -> None:
    with torch.device("meta"):
        x = torch.empty(2, 1, 64, 64)
        for name, options in (("mobilenet_v1", {"width": numpy.float32(0.5)}),
                              ("shufflenet_v1", {"groups": numpy.int64(2)}),
                              ("shufflenet_v2", {"width": numpy.float32(0.5)})):
            network = ts.create_model(name, num_classes=numpy.int64(7), in_channels=numpy.uint8(1), **options)
            assert network(x).shape == (2, 7)


def test_any_positive_width_makes_a_mobilenet() -> None:
    for width in (0.01, 0.33, 1.5):
        with torch.device("meta"):
            assert ts.create_model("mobilenet_v1", width=width)(torch.empty(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["vgg_cifar", "preresnet_cifar", "densenet_cifar"])
def test_scales_of_norms_start_where_they_are_told_to(name: str) -> None:
    network = made(name, scale=0.5)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all((norm.weight == 0.5).all() and (norm.bias == 0).all() for norm in norms)
    assert all((norm.weight == 1).all() for norm in made(name).modules() if isinstance(norm, nn.BatchNorm2d))


def test_a_padded_shortcut_is_what_the_paper_says() -> None:
    """Option A: every second place, and zeros for the channels that are new."""
    x = torch.randn(2, 16, 8, 8)
    y = zoo.resnet.Padded(16, 32)(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_a_dense_layer_keeps_what_came_in() -> None:
    layer, x = zoo.densenet.DenseLayer(5, 3), torch.randn(2, 5, 8, 8)
    y = layer(x)
    assert y.shape == (2, 8, 8, 8)
    assert torch.equal(y[:, :5], x)
