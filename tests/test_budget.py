"""Budgets are met by arithmetic: never above, close below, or the plan says why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import count, counted_macs, random_statistics
from torchslim.budget import Meter, as_count
from torchslim.coupling import Scaling
from torchslim.errors import RequestError

INPUTS = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def model(name: str = "resnet18") -> nn.Module:
    return random_statistics(torchslim.create_model(name, num_classes=10)).eval()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("importance", ["l2", "l1", "bn_scale", "random"])
def test_a_share_is_met_from_below_within_a_hundredth(name: str, share: float, importance: str) -> None:
    plan = torchslim.plan(model(name), INPUTS, macs=share, importance=importance)
    (budget,) = plan.budgets
    assert budget.asked - 0.01 * budget.before <= budget.met <= budget.asked == int(share * budget.before)
    assert not plan.notes


def test_counts_and_several_limits_together() -> None:
    resnet = model()
    plan = torchslim.plan(resnet, INPUTS, macs=60_000_000, params=0.3)
    slim = torchslim.apply(resnet, plan)
    macs, params = plan.budgets
    assert (macs.resource, macs.asked, macs.met) == ("macs", 60_000_000, counted_macs(slim, INPUTS))
    assert (params.resource, params.asked, params.met) == ("params", int(0.3 * count(resnet)), count(slim))
    assert macs.met <= macs.asked
    assert params.met <= params.asked
    # One of them binds; the other is met on the way.
    assert min(macs.asked - macs.met - 0.01 * macs.before, params.asked - params.met - 0.01 * params.before) <= 0


def test_channels_are_counted_over_all_layers() -> None:
    resnet = model()
    plan = torchslim.plan(resnet, INPUTS, channels=0.5)
    slim = torchslim.apply(resnet, plan)

    def channels(network: nn.Module) -> int:
        return sum(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)) + network.fc.out_features

    (budget,) = plan.budgets
    assert (budget.before, budget.met) == (channels(resnet), channels(slim))
    assert budget.asked - 0.01 * budget.before <= budget.met <= budget.asked


def test_uniform_scope_keeps_the_same_share_of_every_group() -> None:
    resnet = model()
    plan = torchslim.plan(resnet, INPUTS, macs=0.4, scope="uniform")
    shares = {len(plan.kept[f"{name}.weight"][0]) / layer.out_channels for name, layer in resnet.named_modules()
              if isinstance(layer, nn.Conv2d)}
    assert max(shares) - min(shares) <= 2 / 64


def test_shares_by_pattern_and_a_budget_for_the_rest() -> None:
    resnet = model()
    plan = torchslim.plan(resnet, INPUTS, scope={"layer1.*.conv1": 0.75, "layer2.0.conv1": 0.5})
    slim = torchslim.apply(resnet, plan)
    assert [slim.layer1[0].conv1.out_channels, slim.layer1[1].conv1.out_channels] == [48, 48]
    assert slim.layer2[0].conv1.out_channels == 64
    assert slim.layer2[1].conv1.out_channels == 128  # neither named nor under a budget
    plan = torchslim.plan(resnet, INPUTS, macs=0.5, scope={"layer1.*.conv1": 0.75})
    slim = torchslim.apply(resnet, plan)
    assert slim.layer1[0].conv1.out_channels == 48
    assert plan.budgets[0].met <= plan.budgets[0].asked


@pytest.mark.parametrize("round_to", [4, 8, 16])
def test_kept_channels_are_multiples(round_to: int) -> None:
    for name in ("resnet18", "resnext50_32x4d", "shufflenet_v2_x1_0"):
        network = model(name)
        plan = torchslim.plan(network, INPUTS, macs=0.5, round_to=round_to)
        slim = torchslim.apply(network, plan)
        for (layer, before), after in zip(network.named_modules(), slim.modules(), strict=True):
            if isinstance(before, nn.Conv2d) and before.out_channels != after.out_channels:
                assert after.out_channels % round_to == 0, layer


def test_least_widths_only_and_exclude() -> None:
    resnet = model()
    plan = torchslim.plan(resnet, INPUTS, macs=0.05, min_channels=20)
    assert min(len(dims[0]) for name, dims in plan.kept.items() if name.endswith("conv1.weight") and 0 in dims) >= 20
    plan = torchslim.plan(resnet, INPUTS, macs=0.9, only=["layer4.*.conv1"])
    assert {name for name, dims in plan.kept.items() if name.endswith("conv1.weight") and 0 in dims} == {
        "layer4.0.conv1.weight", "layer4.1.conv1.weight"}
    plan = torchslim.plan(resnet, INPUTS, macs=0.5, exclude=["layer4.*"])
    assert not [name for name, dims in plan.kept.items() if name.startswith("layer4") and "conv2" in name and 0 in dims]
    assert any(entry.reason == "among exclude=" for entry in plan.left_alone)


def test_a_budget_out_of_reach_is_said() -> None:
    plan = torchslim.plan(model("squeezenet1_1"), INPUTS, macs=0.5, shortcuts=False)
    (budget,) = plan.budgets
    assert budget.met > budget.asked
    (note,) = plan.notes
    assert note.startswith(f"macs: asked for at most {budget.asked:,}, and {budget.met:,} is the least")


@pytest.mark.parametrize(("options", "message"), [
    ({}, "nothing was asked"),
    ({"macs": 1.5}, "macs=1.5: wanted a float in (0, 1]"),
    ({"macs": 0}, "macs=0: wanted"),
    ({"params": -1}, "params=-1: wanted"),
    ({"macs": "half"}, "macs: got 'half', wanted a share"),
    ({"macs": True}, "macs: got True"),
    ({"macs": float("nan")}, "macs=nan: wanted"),
    ({"macs": 0.5, "scope": "local"}, "scope: got 'local', wanted 'global', 'uniform' or a dict"),
    ({"scope": {"layer1.*": 2}}, "scope: 'layer1.*': 2 is no share"),
    ({"scope": {"stage1.*": 0.5}}, "scope: no layer that makes channels matches 'stage1.*'"),
    ({"macs": 0.5, "only": "layer1.*"}, "only: got 'layer1.*', wanted a sequence"),
    ({"macs": 0.5, "exclude": ["nothing"]}, "exclude: no layer that makes channels matches 'nothing'"),
    ({"macs": 0.5, "round_to": 0}, "round_to: got 0, wanted an int of at least 1"),
    ({"macs": 0.5, "importance": "magic"}, "importance: unknown criterion 'magic'; wanted one of bn_scale, fpgm"),
])
def test_wrong_requests_say_what_was_wanted(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        torchslim.plan(model(), INPUTS, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_meter_scales_amounts_by_what_is_kept() -> None:
    meter = Meter([Scaling(100, (np.array([0, 1]), np.array([2, 3, 4, 5]))), Scaling(7, ())])
    assert meter.total == meter(np.ones(6)) == 107
    assert meter(np.array([1, 0, 1, 1, 1, 0.0])) == 100 * 1 // 2 * 3 // 4 + 7 + 1 == 45


def test_shares_and_counts_are_told_apart() -> None:
    assert as_count(1.0, 10, "macs") == 10
    assert as_count(1, 10, "macs") == 1
    assert as_count(0.25, 10, "macs") == 2


class Bare(nn.Module):
    """No batch norm scales the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def test_a_criterion_without_data_names_the_group() -> None:
    with pytest.raises(RequestError, match="'bn_scale': no batch norm scales the channels of `first`"):
        torchslim.plan(Bare(), INPUTS, macs=0.5, importance="bn_scale")
