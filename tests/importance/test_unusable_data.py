"""Data that tell little or nothing, and clocks that give no times: one line, or what little there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from clocks import Blocky
from torchslim.errors import RequestError, TraceError
from torchslim.importance import OBS, Evidence
from torchslim.utils.data import list_batches
from torchslim.utils.inputs import tensors_in


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c2, self.b2, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.b2(self.c2(self.b1(self.c1(x)).relu())).relu().mean((2, 3)))
        return out


X = torch.zeros(1, 3, 8, 8)


def net(classes: int = 5) -> Net:
    torch.manual_seed(0)
    return Net(classes).eval()


def some(batches: int, size: int = 8) -> list[Tensor]:
    return list(torch.randn(batches, size, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def met(plan: ts.Plan) -> bool:
    return bool(plan.kept) and all(budget.met <= budget.asked for budget in plan.budgets)


def test_dead_channels_say_nothing_of_the_price_of_the_others() -> None:
    """Equal networks, one of them without its dead channels, are cut alike."""
    model = net()
    with torch.no_grad():
        model.b2.weight[:4] = 0
        model.b2.bias[:4] = 0
    data = some(4, 16)
    shorter = ts.apply(model, ts.plan(model, X, scope={"c2": 0.75}, importance="l2:all", only=["c2"]))
    found = []
    for each in (model, shorter):
        [group] = [group for group in ts.groups(each, X) if "c2" in group.makers]
        found.append(OBS()([group], Evidence(each, X, data, gains=lambda _: 1.0))[0])
    assert found[0][:4].max() < 1e-6 * found[0][4:].min()
    np.testing.assert_allclose(found[0][4:], found[1], rtol=1e-2)


@pytest.mark.parametrize(("classes", "batches", "size"), [(1, 1, 1), (1, 4, 1), (5, 1, 1), (5, 3, 2)])
def test_outputs_that_are_the_same_for_all_of_a_batch_do_for_trials(classes: int, batches: int, size: int) -> None:
    model = net(classes)
    with torch.no_grad():
        model.fc.weight *= 100
    data = some(batches, size)
    assert met(ts.plan(model, X, macs=0.5, importance="obs", data=data))


class Sometimes(Net):
    """A layer that runs on bright batches alone."""

    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.aside = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c1(x).relu()
        if x.mean() > -5:
            y = y + self.aside(y)
        out: Tensor = self.fc(self.c2(y).relu().mean((2, 3)))
        return out


def test_a_layer_that_no_batch_of_a_half_reaches_is_refitted_on_all() -> None:
    torch.manual_seed(0)
    model = Sometimes().eval()
    bright = some(4)
    data = [batch - 10 * (place % 2) for place, batch in enumerate(bright)]
    assert met(ts.plan(model, X, macs=0.6, importance="obs", data=data))


class Finder(nn.Module):
    """A head for each place that is bright enough; there may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.inside, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.c2(self.c1(x).relu()).relu()
        rows = y.flatten(2).mT.reshape(-1, 16)
        found = rows[(x.mean(1).flatten() > 1.0).nonzero().flatten()]
        return y, self.head(self.inside(found).relu())


def test_a_batch_on_which_a_detector_finds_nothing_tells_nothing() -> None:
    torch.manual_seed(0)
    model = Finder().eval()
    x = torch.full((1, 3, 8, 8), 2.0)
    full, none = torch.rand(4, 3, 8, 8) + 1.5, torch.zeros(4, 3, 8, 8)
    plan = ts.plan(model, x, macs=0.6, importance="obs", data=[full, none, full + 0.1])
    slim = ts.apply(model, plan)
    for data in ([full, none], [none, none]):
        assert all(value.isfinite().all() for value in ts.compensate(model, slim, plan, data).state_dict().values())


def spoilt(model: Net, value: float) -> Net:
    """With one weight of the last layer that is no number."""
    with torch.no_grad():
        model.fc.weight[0, 0] = value
    return model


NAN = [batch * float("nan") for batch in some(2)]


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: ts.plan(m, X, macs=0.5, importance="obs", data=NAN), "reads values that are not finite on the data"),
    (lambda m: ts.plan(m, X, macs=0.5, importance="obs", data=[torch.zeros(2, 3, 8, 8)] * 2), ""),
    (lambda m: ts.plan(m, X, macs=0.5, importance=OBS(damp=1e-300), data=some(2, 2)), "damp=1e-300 is too little"),
    (lambda m: ts.plan(spoilt(m, float("nan")), X, macs=0.5, importance="obs", data=some(2)), "look for NaN"),
    (lambda m: ts.plan(spoilt(m, float("inf")), X, macs=0.5, importance="obs", data=some(2)), "look for NaN"),
    (lambda m: OBS(tried=0.3), "tried=0.3 found, shares above 0 and up to 1 wanted"),  # type: ignore[arg-type]
    (lambda m: OBS(tried=None), "tried=None found"),  # type: ignore[arg-type]
    (lambda m: OBS(damp=True), "damp=True found"),
    (lambda m: ts.plan(m, X, scope={"c1": "half"}), "scope: 'c1': half is no share"),  # type: ignore[dict-item]
    (lambda m: ts.plan(m, X, scope={"c1": True}), "scope: 'c1': True is no share"),
    (lambda m: ts.plan(m, X, scope={1: 0.5}), "scope: 1 is no pattern"),  # type: ignore[dict-item]
    (lambda m: ts.plan(m, X, scope=["c1"], macs=0.5), "scope: got ['c1'], wanted"),  # type: ignore[arg-type]
    (lambda m: ts.plan(m, X, macs=0.5, only=None), "only: got None, wanted"),  # type: ignore[arg-type]
    (lambda m: ts.plan(m, X, macs=0.5, exclude=3), "exclude: got 3, wanted"),  # type: ignore[arg-type]
    (lambda m: ts.plan(m, X, macs=0.5, round_to=True), "round_to: got True, wanted"),
])
def test_wrong_requests_get_one_line(call: Callable[[Net], object], message: str) -> None:
    if not message:  # black pictures tell little, and are no mistake
        call(net())
        return
    with pytest.raises(RequestError) as caught:
        call(net())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_to_try_may_be_a_list() -> None:
    assert OBS(tried=[0.2]) == OBS(tried=(0.2,))  # type: ignore[arg-type]
    assert met(ts.plan(net(), X, macs=0.5, importance=OBS(tried=[0.2]), data=some(2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("importance", ["obs", "taylor", "activation"])
@pytest.mark.parametrize("inside", [True, False])
def test_tensors_of_inference_mode_are_data_like_any(importance: str, inside: bool) -> None:
    """Gradients, and norms that are settled, want others: they get copies."""
    with torch.inference_mode():
        model, data = net(), some(2)
        labelled = [(x, torch.arange(8) % 5) for x in data]
    told: dict[str, Any] = {"data": labelled, "loss": nn.functional.cross_entropy} if importance == "taylor" else \
        {"data": data}
    with torch.inference_mode(inside):
        plan = ts.plan(model, data[0], macs=0.5, importance=importance, **told)
        slim = ts.apply(model, plan)
        assert met(plan)
        better = ts.compensate(model, slim, plan, data)
        again = ts.compensate(net(), slim, plan, some(2))
    for name, value in better.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name])


@dataclass
class Pair:
    first: Tensor
    second: str = "as it is"


def test_batches_of_inference_mode_in_any_container() -> None:
    with torch.inference_mode():
        tensor = torch.ones(2)

    def generated() -> Iterator[Tensor]:
        with torch.inference_mode():
            yield tensor.clone()

    odd: Any = defaultdict(list, {"x": tensor})
    found = [*list_batches([tensor, (tensor, 1), {"x": tensor}, odd, Pair(tensor)]), *list_batches(generated())]
    assert not any(each.is_inference() for each in tensors_in(found))
    assert len(list(tensors_in(found))) == 6
    assert found[1][1] == 1
    assert found[4].second == "as it is"
    kept = [torch.ones(2)]
    assert list_batches(kept)[0] is kept[0]


@pytest.mark.parametrize("data", [NAN, [3], [(some(1)[0], torch.zeros(8))]])
def test_compensation_refuses_data_that_tell_nothing_and_leaves_no_hooks(data: list[Any]) -> None:
    model = net()
    plan = ts.plan(model, X, macs=0.5)
    slim = ts.apply(model, plan)
    with pytest.raises((RequestError, TraceError), match=r"not finite|wanted a tensor|data=\(x for x"):
        ts.compensate(model, slim, plan, data)
    assert not any(m._forward_hooks or m._forward_pre_hooks for one in (model, slim) for m in one.modules())


class Wrong(Blocky):
    """A clock of one's own that gives something else."""

    def __init__(self, layers: Any = None, networks: Any = None) -> None:
        super().__init__()
        self.given = layers, networks

    @property
    def environment(self) -> dict[str, str]:
        return {"backend": repr(self.given)}

    def time_layers(self, wanted: Any) -> Any:
        return super().time_layers(wanted) if self.given[0] is None else self.given[0][0]

    def time_networks(self, models: Any, inputs: Any) -> Any:
        return super().time_networks(models, inputs) if self.given[1] is None else self.given[1][0]


@pytest.mark.parametrize(("clock", "message"), [
    (Wrong(layers=(None,)), "backend blocky: time_layers() gave NoneType, wanted"),
    (Wrong(layers=([5.0],)), "time_layers() gave 1 numbers, wanted"),
    (Wrong(layers=(np.full(1000, np.nan),)), "time_layers() gave 1000 numbers, wanted"),
    (Wrong(networks=(None,)), "time_networks() gave times of 0 networks"),
    (Wrong(networks=([],)), "time_networks() gave times of 0 networks"),
    (Wrong(networks=([[]],)), "for a network gave 0 numbers"),
    (Wrong(networks=([1e6],)), "for a network gave float, wanted one or more"),
    (Wrong(networks=([[0.0]],)), "gave 0.0 for a time, wanted nanoseconds above 0"),
    (Wrong(networks=([[float("nan")]],)), "gave nan for a time"),
])
def test_a_clock_that_gives_no_times_is_told(clock: Wrong, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        ts.plan(net(), X, latency=0.5, backend=clock)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
