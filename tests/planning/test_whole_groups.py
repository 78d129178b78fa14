"""Grouped convolutions that lose whole groups, where the caller asks for that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import check_training, count, counted_macs, oracle_error, random_statistics


class Net(nn.Module):
    """A convolution, a grouped one with its norm, and a reader."""

    def __init__(self, groups: int = 8, width: int = 4) -> None:
        super().__init__()
        c = groups * width
        self.a, self.grouped = nn.Conv2d(3, c, 3), nn.Conv2d(c, 2 * c, 3, groups=groups)
        self.norm, self.b = nn.BatchNorm2d(2 * c), nn.Conv2d(2 * c, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.grouped(self.a(x).relu())).relu())


X = torch.randn(2, 3, 9, 9)


def test_groups_go_as_a_whole_with_what_they_read_and_make() -> None:
    model = random_statistics(Net()).eval()
    plan = ts.plan(model, X, macs=0.5, whole_groups=True)
    slim = ts.apply(model, plan)
    left = slim.grouped.groups
    assert 2 <= left < 8
    assert plan.grouped["grouped.weight"] == (8, left)
    assert slim.grouped.weight.shape == (8 * left, 4, 3, 3)  # filters as wide as before
    assert (slim.grouped.in_channels, slim.grouped.out_channels) == (4 * left, 8 * left)
    read = plan.kept["grouped.weight"][1]
    assert {channel // 4 for channel in read} == {channel // 8 for channel in plan.kept["norm.weight"][0]}
    assert plan.kept["a.weight"][0] == read
    assert ts.verify(model, slim, plan, X) < 1e-12
    assert oracle_error(model, slim, plan, X) < 1e-12
    assert plan.predicted == {"params": count(slim), "macs": counted_macs(slim, X)}
    assert check_training(slim, X) == check_training(model, X)
    assert ts.Plan.from_json(plan.to_json()) == plan


def test_without_asking_every_group_stays() -> None:
    model = random_statistics(Net()).eval()
    slim = ts.apply(model, ts.plan(model, X, macs=0.5))
    assert slim.grouped.groups == 8
    assert slim.grouped.weight.shape[1] < 4


def test_the_least_important_groups_go() -> None:
    model = random_statistics(Net()).eval()
    with torch.no_grad():
        for group in (1, 5):
            model.a.weight[4 * group:4 * group + 4] *= 0.01
            model.grouped.weight[8 * group:8 * group + 8] *= 0.01
            model.b.weight[:, 8 * group:8 * group + 8] *= 0.01
    plan = ts.plan(model, X, channels=76, whole_groups=True)
    gone = set(range(32)) - set(plan.kept["a.weight"][0])
    assert gone == {*range(4, 8), *range(20, 24)}


def test_groups_are_listed_as_channels_that_live_together() -> None:
    [group] = [g for g in ts.groups(Net(), X, whole_groups=True) if "grouped" in g.makers]
    assert group.channels == 8
    member = next(m for m in group.members if (m.name, m.dim) == ("grouped.weight", 0))
    assert member.indices.tolist() == [list(range(8 * g, 8 * g + 8)) for g in range(8)]


@pytest.mark.parametrize("name", ["resnext50_32x4d", "regnet_y_400mf"])
def test_known_networks(name: str) -> None:
    torch.manual_seed(0)
    model, x = random_statistics(ts.create_model(name, num_classes=10)).eval(), torch.randn(1, 3, 64, 64)
    slim, plan = ts.prune(model, x, macs=0.4, whole_groups=True)
    grouped = [(a, b) for a, b in zip(model.modules(), slim.modules(), strict=True)
               if isinstance(a, nn.Conv2d) and a.groups > 1]
    assert all(b.groups < a.groups and b.weight.shape[1] == a.weight.shape[1] for a, b in grouped)
    assert oracle_error(model, slim, plan, x) < 1e-10
    assert plan.budgets[0].met == counted_macs(slim, x) <= plan.budgets[0].asked


def test_the_network_s_own_shuffle_keeps_its_groups_where_they_mix() -> None:
    """Shuffled, each group reads of every other: none can go alone, and the plan says so."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(8, 8, 1, groups=4)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).view(2, 4, 2, 9, 9).transpose(1, 2)
            return self.head(self.b(y.reshape(2, 8, 9, 9)))

    x = torch.randn(2, 4, 9, 9)
    plan = ts.plan(Shuffled(), x, macs=0.5, whole_groups=True, strict=False)
    assert plan.kept == {}
    assert {entry.name for entry in plan.left_alone} >= {"b", "head"}
