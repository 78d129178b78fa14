"""Optimal brain surgeon for channels: prices against constrained least squares, what is measured against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from torchslim.errors import RequestError
from torchslim.importance import OBS, Evidence
from torchslim.importance.obs import criterion as surgeon
from torchslim.importance.obs import readers as readings
from torchslim.importance.obs import statistics as statistics_module
from torchslim.importance.obs.criterion import ReaderBlock, _prices
from torchslim.importance.obs.statistics import collect_statistics
from torchslim.utils.layer_spec import spec_from_attributes


def refitted(root: np.ndarray, weight: np.ndarray, gone: list[int], taps: int) -> float:
    """What the best weights that leave out some channels are off by: numpy's least squares."""
    stays = [c * taps + t for c in range(root.shape[1] // taps) if c not in gone for t in range(taps)]
    wanted = root @ weight.T
    best = np.linalg.lstsq(root[:, stays], wanted, rcond=None)[0] if stays else np.zeros((0, len(weight)))
    return float(np.square(wanted - root[:, stays] @ best).sum())


@pytest.mark.parametrize("taps", [1, 3])
def test_each_price_is_what_the_best_refit_without_the_channel_adds(taps: int) -> None:
    chance = np.random.default_rng(taps)
    channels = 7
    roots = [chance.normal(size=(60, channels * taps)), chance.normal(size=(60, 4 * taps))]
    weights = [chance.normal(size=(5, channels * taps)), chance.normal(size=(3, 4 * taps))]
    homes = [np.arange(channels), np.array([0, 2, 3, 6])]
    blocks = [ReaderBlock(home, torch.from_numpy(weight).reshape(-1, len(home), taps),
                  torch.linalg.inv(torch.from_numpy(root.T @ root)).reshape(len(home), taps, len(home), taps))
             for root, weight, home in zip(roots, weights, homes, strict=True)]
    found = _prices(channels, blocks)

    def lost(gone: list[int]) -> float:
        return sum(refitted(root, weight, [list(home).index(c) for c in gone if c in home], taps)
                   for root, weight, home in zip(roots, weights, homes, strict=True))

    gone: list[int] = []
    dearest = 0.0
    while len(gone) < channels:
        added = {c: lost([*gone, c]) - lost(gone) for c in range(channels) if c not in gone}
        cheapest = min(added, key=lambda c: added[c])
        dearest = max(dearest, added[cheapest])
        assert found[cheapest] == pytest.approx(dearest, rel=1e-9)
        gone.append(cheapest)
    assert np.argsort(found, kind="stable").tolist() == gone


class Twins(nn.Module):
    """Channel 5 of the first layer is channel 2 again, as large as any."""

    def __init__(self, *readers: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first: Any = first or nn.Conv2d(3, 8, 3, padding=1)
        self.readers = nn.Sequential(*readers)
        with torch.no_grad():
            self.first.weight[5] = self.first.weight[2]
            self.first.bias[5] = self.first.bias[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.readers(self.first(x).relu())


def head() -> list[nn.Module]:
    return [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]


READERS = {
    "pointwise": lambda: [nn.Conv2d(8, 6, 1, stride=2), *head()],
    "3x3": lambda: [nn.Conv2d(8, 6, 3, dilation=2, padding="same"), *head()],
    "transposed": lambda: [nn.ConvTranspose2d(8, 6, 2, stride=2), *head()],
    "flattened": lambda: [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 4)],
    "behind a norm": lambda: [nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), *head()],
}


@pytest.mark.parametrize("wide", [2048, 20, 7])
@pytest.mark.parametrize("name", READERS)
def test_a_channel_that_another_one_repeats_is_nearly_free(name: str, wide: int,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "WIDE", wide)  # below what filters see: tap by tap, or place by place
    torch.manual_seed(1)
    model = Twins(*READERS[name]()).eval()
    x = torch.randn(16, 3, 12, 12)
    plan = ts.plan(model, x[:1], channels=0.99, importance=OBS(damp=1e-6), only=["first"], data=[x[:8], x[8:]])
    kept = plan.kept["first.weight"][0]
    assert len(kept) == 7
    assert {2, 5} - set(kept) != set()  # one of the twins went, and not both
    slim = ts.compensate(model, ts.apply(model, plan), plan, [x], ridge=1e-7)
    with torch.no_grad():
        assert float((slim(x) - model(x)).abs().max()) < 1e-3 * float(model(x).abs().max())


def test_grouped_readers_pay_within_their_groups() -> None:
    torch.manual_seed(2)
    model = Twins(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():  # 2 and 5 are read by different groups of filters, 5 and 6 by one
        model.first.weight[6], model.first.bias[6] = model.first.weight[5], model.first.bias[5]
    x = torch.randn(12, 3, 9, 9)
    groups = [g for g in ts.groups(model.eval(), x) if "first" in g.makers]
    found = OBS(damp=1e-6)(groups, Evidence(model, x[:1], [x], gains=lambda _: 1.0))
    scores = np.zeros(8)
    for group, own in zip(groups, found, strict=True):
        made = next(member for member in group.members if member.name == "first.weight" and member.dim == 0)
        scores[made.indices[:, 0]] = own
    assert scores[[5, 6]].min() < 1e-3 * np.delete(scores, [5, 6]).min()


def test_what_is_measured_is_what_numpy_says() -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(3, 2, (2, 1), stride=(1, 2))
    model = nn.Sequential(conv, nn.ReLU(inplace=True)).eval()
    x = torch.randn(5, 3, 4, 5)
    spec = spec_from_attributes(conv)
    assert spec is not None
    seen = collect_statistics(model, [x[:2], x[2:]], {"0": (spec, [torch.arange(6)])}, 0)["0"]
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), (2, 1), (2, 3))[:, :, :, ::2]
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 6)
    np.testing.assert_allclose(seen.moments(0)[0], np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-5)
    # The outputs feel an error of the convolution where its ReLU is open, with a gradient of 1 or -1.
    np.testing.assert_allclose(seen.squared_gradients, (conv(x) > 0).sum((0, 2, 3)).numpy())


def test_moments_of_channels_that_hardly_vary_about_a_large_mean_are_exact() -> None:
    conv = nn.Conv2d(2, 2, 1)
    x = torch.randn(4, 2, 6, 6).double()
    x[:, 0] = 1000 + 0.01 * x[:, 0]
    x[2:, 1] += 500
    spec = spec_from_attributes(conv)
    assert spec is not None
    halves = [x[:2].float(), x[2:].float()]
    seen = collect_statistics(nn.Sequential(conv), halves, {"0": (spec, [torch.arange(2)])}, 0)["0"]
    wanted = np.cov(x.float().double().transpose(0, 1).flatten(1).numpy(), bias=True)
    np.testing.assert_allclose(seen.moments(0)[0], wanted, rtol=1e-3)


def test_how_loud_the_pictures_are_does_not_matter_behind_batch_norms() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
                          nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.randn(16, 3, 10, 10)
    plans = [ts.plan(model, x[:1], macs=0.5, importance="obs", data=[x * loud]) for loud in (1.0, 0.05)]
    assert plans[0].kept == plans[1].kept


def test_it_is_measured_once_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = statistics_module.collect_statistics

    def counted(*args: Any) -> Any:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(surgeon, "collect_statistics", counted)
    torch.manual_seed(5)
    model = Twins(*READERS["3x3"]()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(8, 3, 12, 12)
    groups = [g for g in ts.groups(model, x) if not g.frozen]
    evidence = Evidence(model, x[:1], [x], gains=lambda _: 1.0)
    first, second = OBS()(groups, evidence), OBS()(groups[:1], evidence)
    assert len(calls) == 1
    np.testing.assert_array_equal(first[0], second[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())


class Deciding(Twins):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Aside(nn.Module):
    """Channels of `first` that nothing reads but the outputs, by way of a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x).mean((2, 3)), self.weight)


@pytest.mark.parametrize(("model", "options", "message"), [
    (Twins(*READERS["3x3"]()), {}, "asks for data="),
    (Twins(*READERS["3x3"]()), {"data": []}, "data: no batch in it"),
    (Twins(*READERS["3x3"]()), {"data": [torch.randn(2, 5, 12, 12)]}, "data: "),
    (Deciding(*READERS["3x3"]()), {"data": [torch.randn(2, 3, 12, 12)]}, "no output of the model is differentiable"),
    (Aside(), {"data": [torch.randn(2, 3, 12, 12)]}, "reads the channels of `first`"),
])
def test_what_it_cannot_do_is_told(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        ts.plan(model.eval(), torch.randn(1, 3, 12, 12), macs=0.7, importance="obs", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damp", [0, -1.0, float("nan"), float("inf"), "much"])
def test_a_damp_is_a_positive_number(damp: Any) -> None:
    with pytest.raises(RequestError, match="a number above 0 wanted"):
        OBS(damp=damp)
