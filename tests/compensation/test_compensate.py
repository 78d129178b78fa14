"""What a cut has lost is put back: exactly where what is left says it all, nearly elsewhere, and by least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import torchslim as ts
from helpers import Calls, Untouched, conv, random_statistics
from torchslim.errors import PlanError, RequestError, TraceError

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
Network = nn.Module


def doubled(model: Any, first: str, second: str, norm: str | None = None) -> Network:
    """The second half of a layer's channels as twice its first half."""
    layer, half = model.get_submodule(first), model.get_submodule(first).out_channels // 2
    with torch.no_grad():
        layer.weight[half:] = 2 * layer.weight[:half]
        if layer.bias is not None:
            layer.bias[half:] = 2 * layer.bias[:half]
        if norm is not None:
            n: Any = model.get_submodule(norm)
            for tensor in (n.weight, n.bias):
                tensor[half:] = 2 * tensor[:half]
            n.running_mean[half:] = 2 * n.running_mean[:half]
            n.running_var[half:] = 4 * n.running_var[:half]
            n.eps = 0.0
    return model  # type: ignore[no-any-return]


def halved(model: Network, layer: str, x: Tensor = X) -> tuple[Network, ts.Plan]:
    """Cut to the first half of one layer's channels."""
    def first(group: Any) -> Any:
        return -np.arange(group.channels)

    plan = ts.plan(model, x, scope={layer: 0.5}, only=[layer], importance=first)
    return ts.apply(model, plan), plan


def plain(**options: Any) -> Network:
    torch.manual_seed(1)
    return nn.Sequential(conv(3, 8, **options), nn.ReLU(), conv(8, 6, **options), nn.ReLU(), conv(6, 4)).double().eval()


def normed() -> Network:
    torch.manual_seed(1)
    return random_statistics(nn.Sequential(
        conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        conv(6, 4))).double().eval()


def outputs_differ(model: Network, other: Network, x: Tensor) -> float:
    with torch.no_grad():
        wanted = model(x)
        return float((other(x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("build", [
    lambda: doubled(plain(), "0", "2"),
    lambda: doubled(plain(padding_mode="reflect"), "0", "2"),
    lambda: doubled(plain(dilation=2), "0", "2"),
    lambda: doubled(plain(stride=2), "0", "2"),
    lambda: doubled(normed(), "0", "3", "1")], ids=["plain", "reflect", "dilated", "strided", "normed"])
def test_channels_that_others_say_already_are_lost_without_loss(build: Any) -> None:
    model, new = build(), torch.randn(2, 3, 20, 20, dtype=torch.float64)
    slim, plan = halved(model, "0", X.double())
    data = [torch.randn(8, 3, 20, 20, dtype=torch.float64) for _ in range(2)]
    better = ts.compensate(model, slim, plan, data, ridge=1e-9)
    assert outputs_differ(model, slim, new) > 0.1
    assert outputs_differ(model, better, new) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_what_constant_channels_gave_goes_into_the_bias_or_the_norm(bias: bool) -> None:
    torch.manual_seed(0)
    model: Any = random_statistics(nn.Sequential(
        conv(3, 6, 1), nn.ReLU(), conv(6, 5, 1, bias=bias), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 2, 1))).double()
    with torch.no_grad():
        model[0].weight[3:] = 0
        model[0].bias[3:] = 2
    slim, plan = halved(model.eval(), "0", X.double())
    better = ts.compensate(model, slim, plan, [X.double()], ridge=1e-12)
    assert outputs_differ(model, slim, X.double()) > 0.1
    assert outputs_differ(model, better, X.double()) < 1e-6
    assert [p.shape for p in better.parameters()] == [p.shape for p in slim.parameters()]


def test_a_layer_is_the_ridge_regression_that_numpy_finds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x, ridge = torch.randn(40, 5, dtype=torch.float64), 0.2
    slim, plan = halved(model, "0", x)
    better: Any = ts.compensate(model, slim, plan, [x[:20], x[20:]], ridge=ridge)
    kept = list(plan.kept["2.weight"][1])
    hidden, wanted = model[:2](x).detach().numpy(), model(x).detach().numpy()
    a, b = hidden[:, kept] - hidden[:, kept].mean(0), wanted - wanted.mean(0)
    holds = ridge * (a**2).mean(0)
    start = model[2].weight.detach().numpy()[:, kept]
    # The ridge as further rows of the regression: each weight is drawn to what it was.
    rows = np.vstack([a / np.sqrt(len(a)), np.diag(np.sqrt(holds))])
    best = np.linalg.lstsq(rows, np.vstack([b / np.sqrt(len(a)), (np.sqrt(holds) * start).T]), rcond=None)[0].T
    np.testing.assert_allclose(better[2].weight.detach().numpy(), best, atol=1e-6)
    np.testing.assert_allclose(better[2].bias.detach().numpy(), wanted.mean(0) - hidden[:, kept].mean(0) @ best.T,
                               atol=1e-6)


@pytest.mark.parametrize(("build", "side"), [
    (lambda: ts.create_model("timm:test_resnet", num_classes=10), 64),
    pytest.param(lambda: torchvision.models.mobilenet_v2(num_classes=10), 64, marks=pytest.mark.nightly),
    (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 64),
    pytest.param(lambda: torchvision.models.regnet_y_400mf(num_classes=10), 64, marks=pytest.mark.nightly),
    pytest.param(lambda: ts.create_model("unet", width=0.125), 125, marks=pytest.mark.nightly)],
    ids=["resnet", "mobilenet", "shufflenet", "regnet", "unet"])
def test_networks_come_nearer_to_their_originals(build: Any, side: int) -> None:
    torch.manual_seed(0)
    model = random_statistics(build()).eval()
    slim, plan = ts.prune(model, torch.randn(1, 3, side, side), macs=0.7)
    state = {name: tensor.clone() for name, tensor in slim.state_dict().items()}
    better = ts.compensate(model, slim, plan, [torch.randn(8, 3, side, side) for _ in range(2)])
    new = torch.randn(8, 3, side, side)
    assert outputs_differ(model, better, new) < 0.8 * outputs_differ(model, slim, new)
    assert all(torch.equal(tensor, state[name]) for name, tensor in slim.state_dict().items())


def test_both_networks_their_hooks_and_the_random_state_are_left_as_they_were() -> None:
    model = normed().float()
    slim, plan = halved(model, "0")
    model[3].weight.requires_grad_(False)  # type: ignore[index, union-attr, operator]
    model.train()
    slim.train()
    checks = [Untouched(model), Untouched(slim)]
    better = ts.compensate(model, slim, plan, [X, X])
    for check in checks:
        check.check()
    assert all(module.training for module in better.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in better.modules())
    assert all(p.grad is None for p in better.parameters())


def test_layers_before_the_cut_shared_ones_and_those_called_twice_stay() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        for _ in range(2):
            x = self.twice(x).relu()
        return self.one(x) + self.other(x)

    torch.manual_seed(0)
    model = Calls(forward, a=conv(3, 4), b=conv(4, 8), twice=conv(8, 8), one=conv(8, 3), other=conv(8, 3)).eval()
    model.other.weight = model.one.weight  # type: ignore[union-attr, assignment]
    slim, plan = halved(model, "b")
    better = ts.compensate(model, slim, plan, [X])
    assert {name for name, p in better.named_parameters() if torch.equal(p, slim.get_parameter(name))} == {
        *(f"{layer}.{kind}" for layer in ("a", "b", "twice") for kind in ("weight", "bias")), "one.weight", "one.bias",
        "other.bias"}


def test_groups_transposed_layers_and_half_precision_are_refitted() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16, groups=4), nn.ReLU(),
                               nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ReLU(), conv(8, 4, 1)).eval()
    slim, plan = ts.prune(model, X, channels=0.6)
    better = ts.compensate(model, slim, plan, [X, torch.randn_like(X)], ridge=0.01)
    for name in ("2.weight", "4.weight", "6.weight"):
        assert not torch.equal(better.get_parameter(name), slim.get_parameter(name))
    assert outputs_differ(model, better, X) < 0.9 * outputs_differ(model, slim, X)
    half, cut = model.bfloat16(), slim.bfloat16()
    better = ts.compensate(half, cut, plan, [X.bfloat16()], ridge=0.01)
    assert {p.dtype for p in better.parameters()} == {torch.bfloat16}
    assert outputs_differ(half, better, X.bfloat16()) < 0.9 * outputs_differ(half, cut, X.bfloat16())


def test_wrong_requests_are_refused_in_one_line() -> None:
    model = plain().float()
    slim, plan = halved(model, "0")
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ([], {}, RequestError, "no batch in it"),
        (X, {}, RequestError, "float32, wanted an iterable of batches"),
        (5, {}, RequestError, "got int 5, wanted"),
        ([X], {"ridge": 0}, RequestError, "ridge=0 found, a number above 0"),
        ([X], {"ridge": "a"}, RequestError, "a number above 0"),
        ([X[:, :2]], {}, RequestError, "data: batch 0 is tensor .* on which the model fails: RuntimeError"),
        ([X, X[:, :2]], {}, RequestError, "data: batch 1 is tensor .* on which the model fails: RuntimeError"),
        (["a"], {}, RequestError, "wanted a tensor")]
    for data, options, kind, said in wrong:
        with pytest.raises(kind, match=said) as caught:
            ts.compensate(model, slim, plan, data, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(PlanError, match="the plan makes"):
        ts.compensate(model, model, plan, [X])


def test_networks_whose_path_the_data_decides_are_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(x) if bool(x.mean() > 100) else self.b(self.a(x).relu())

    model = Calls(forward, a=conv(3, 8), b=conv(8, 4), c=conv(3, 4)).eval()
    slim, plan = halved(model, "a")
    with pytest.raises(TraceError, match="does not run the same layers on every batch"):
        ts.compensate(model, slim, plan, [X, X + 1e6])


@pytest.mark.parametrize("importance", ["l2", "obs"])
def test_prune_compensates_on_batches_that_come_once(importance: str) -> None:
    torch.manual_seed(0)
    model = plain().float()
    x = torch.randn(12, 3, 12, 12)
    slim, plan = ts.prune(model, x[:1], macs=0.6, importance=importance, data=iter([x[:6], x[6:]]), compensate=True)
    wanted = ts.compensate(model, ts.apply(model, plan), plan, [x[:6], x[6:]])
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in slim.state_dict().items())
    assert not torch.equal(slim(x), ts.apply(model, plan)(x))


def test_prune_compensates_on_the_pictures_of_labelled_data() -> None:
    torch.manual_seed(0)
    model = plain().float()
    x, y = torch.randn(8, 3, 12, 12), torch.zeros(8, dtype=torch.long)
    options: Any = {"macs": 0.6, "importance": "taylor", "data": [(x, y)],
                    "loss": lambda out, wanted: nn.functional.cross_entropy(out.flatten(2).mean(2), wanted)}
    slim, plan = ts.prune(model, x[:1], compensate=True, **options)
    wanted = ts.compensate(model, ts.apply(model, plan), plan, [x])
    assert torch.equal(slim(x), wanted(x))


def test_prune_does_not_compensate_without_data() -> None:
    with pytest.raises(RequestError, match="compensate=True asks for data="):
        ts.prune(plain(), X, macs=0.6, compensate=True)
