"""What channels carry, measured where their readers see it: held against numpy on what layers gave, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune

import torchslim as ts
from helpers import Calls, Untouched, conv, random_statistics
from torchslim.errors import RequestError
from torchslim.importance import Activation, Evidence, score

X = torch.randn(2, 3, 8, 8)
DATA = [torch.randn(3, 3, 8, 8), torch.randn(1, 3, 8, 8)]
Values = NDArray[np.float64]

ORACLES: dict[str, Callable[[Values], Values]] = {
    "mean_abs": lambda a: np.abs(a).mean(1), "rms": lambda a: np.sqrt((a**2).mean(1)), "variance": lambda a: a.var(1),
    "apoz": lambda a: 1 - (a == 0).mean(1)}


def network() -> nn.Sequential:
    return random_statistics(nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.Flatten(),
                                           nn.Linear(256, 2)))


def scores(model: nn.Module, layer: str, statistic: Any, data: Any = None) -> list[float]:
    group = next(group for group in ts.groups(model, X) if layer in group.makers)
    evidence = Evidence(model, X, DATA if data is None else data)
    [found] = score([group], Activation(statistic, normalize="none"), evidence)
    return found.tolist()


def seen(part: Callable[[Tensor], Tensor], data: list[Tensor] = DATA) -> Values:
    """Of each channel all that a part of a network gave on all batches: (channels, values)."""
    with torch.no_grad():
        maps = [part(x).double().numpy() for x in data]
    return np.concatenate([np.moveaxis(one, 1, 0).reshape(one.shape[1], -1) for one in maps], 1)


@pytest.mark.parametrize("statistic", ORACLES)
def test_statistics_are_of_what_the_readers_read(statistic: str) -> None:
    model = network().eval()
    assert scores(model, "0", statistic) == pytest.approx(ORACLES[statistic](seen(model[:3])).tolist(), rel=1e-5)
    # the linear layer reads 64 columns of each channel
    assert scores(model, "3", statistic) == pytest.approx(ORACLES[statistic](seen(model[:4])).tolist(), rel=1e-5)


@pytest.mark.parametrize("statistic", ORACLES)
def test_all_readers_count_with_what_each_sees(statistic: str) -> None:
    model = random_statistics(Calls(
        lambda s, x: (s.b(s.a(x).relu()).mean((2, 3)) + s.c(s.pool(s.a(x).relu()).tanh()).mean((2, 3))),
        a=conv(3, 8), b=conv(8, 4, groups=4), c=nn.ConvTranspose2d(8, 4, 2), pool=nn.MaxPool2d(2))).eval()
    both = np.concatenate([seen(lambda x: model.a(x).relu()), seen(lambda x: model.pool(model.a(x).relu()).tanh())], 1)
    assert scores(model, "a", statistic) == pytest.approx(ORACLES[statistic](both).tolist(), rel=1e-5)


def test_parts_of_a_concatenation_are_found_in_the_reader() -> None:
    model = random_statistics(Calls(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), a=conv(3, 4), b=conv(3, 6),
                                    c=conv(10, 2))).eval()
    assert scores(model, "b", "variance") == pytest.approx(ORACLES["variance"](seen(model.b)).tolist(), rel=1e-5)


def test_masked_and_tied_weights_have_readers() -> None:
    model = random_statistics(Calls(lambda s, x: s.c(s.b(x).relu()) + s.d(s.b(x).sigmoid()),
                                    b=conv(3, 6), c=conv(6, 2), d=conv(6, 2))).eval()
    both = np.concatenate([seen(lambda x: model.b(x).relu()), seen(lambda x: model.b(x).sigmoid())], 1)
    prune.random_unstructured(model.c, "weight", 0.3)
    assert scores(model, "b", "rms") == pytest.approx(ORACLES["rms"](both).tolist(), rel=1e-5)
    model.c = conv(6, 2)
    model.d.weight = model.c.weight
    assert scores(model, "b", "rms") == pytest.approx(ORACLES["rms"](both).tolist(), rel=1e-5)


def test_a_layer_under_two_names_counts_once() -> None:
    model = random_statistics(Calls(lambda s, x: s.c(s.a(x)) + s.d(s.a(x).tanh()), a=conv(3, 6), b=conv(6, 2),
                                    d=conv(6, 2))).eval()
    model.c = model.b
    both = np.concatenate([seen(model.a), seen(lambda x: model.a(x).tanh())], 1)
    assert scores(model, "a", "rms") == pytest.approx(ORACLES["rms"](both).tolist(), rel=1e-5)


def test_a_channel_without_a_batch_dimension_and_large_maps() -> None:
    model = random_statistics(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))).eval()
    large = torch.randn(3, 3, 700, 900)  # in several parts
    expected = ORACLES["rms"](seen(model[:2], [large]))
    assert scores(model, "0", "rms", [large]) == pytest.approx(expected.tolist(), rel=1e-5)
    assert scores(model, "0", "rms", list(large)) == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_plan_keeps_what_is_active_and_leaves_the_model_as_it_was() -> None:
    model = network()
    with torch.no_grad():
        model[1].bias[[1, 4]] = -100.0  # never above zero
    before = Untouched(model)
    for importance in ("activation", "activation:apoz", Activation("variance", normalize="max")):
        plan = ts.plan(model, X, scope={"0": 0.6}, importance=importance, data=iter(DATA))
        assert plan.kept["0.weight"][0] == (0, 2, 3, 5)
        assert plan.settings["importance"] == str(importance)
    labelled = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in DATA]
    assert ts.plan(model, X, macs=0.5, importance="activation", data=labelled, loss=cross_entropy).kept == ts.plan(
        model, X, macs=0.5, importance="activation", data=DATA).kept
    before.check()


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x1_0"])
def test_well_known_networks_are_scored(name: str) -> None:
    model = random_statistics(ts.create_model(f"torchvision:{name}", num_classes=10))
    x = torch.rand(2, 3, 64, 64)
    slim, plan = ts.prune(model, x, macs=0.5, importance="activation:variance", data=[x])
    assert plan.budgets[0].met <= plan.budgets[0].asked
    assert ts.verify(model, slim, plan, x) < 1e-9


@pytest.mark.parametrize(("data", "said"), [
    (None, "'activation' asks for data=, batches of inputs without labels"), ([], "no batch in it"),
    (X, "float32, wanted an iterable of batches of inputs"), ([(X, torch.tensor([0, 1]))], "on which the model fails"),
    ([X, X[:, :2]], "batch 1 is"), ([5], "batch 0 is int 5; inputs: got int"),
    ([X * float("nan")], "scores of shape (6,) with values that are not finite")])
def test_data_that_says_nothing_is_refused_in_one_line(data: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        ts.plan(network(), X, macs=0.5, importance="activation", data=data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_no_measured_layer_reads_is_named() -> None:
    model = Calls(lambda s, x: nn.functional.conv2d(s.a(x), s.w), a=conv(3, 6))
    model.w = nn.Parameter(torch.randn(2, 6, 1, 1))
    with pytest.raises(RequestError, match=r"no convolution, linear or recurrent layer that ran .* reads .* `a`"):
        ts.plan(model, X, macs=0.5, importance="activation", data=[X])
