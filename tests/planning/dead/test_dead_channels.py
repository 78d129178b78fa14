"""Channels that contribute nothing go, and outputs stay: networks that people write, compared by their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import torchslim as ts
from helpers import random_statistics
from torchslim.planning.dead.finding import dead_channels

EXACT = 1e-12


def inputs(seed: int = 0, size: int = 12) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def zero(layer: nn.Module, filters: Sequence[int]) -> None:
    with torch.no_grad():
        layer.weight[list(filters)] = 0
        if layer.bias is not None:
            layer.bias[list(filters)] = 0


def removed(model: nn.Module) -> tuple[nn.Module, ts.Plan]:
    """The slim model; its outputs are compared on inputs that it has not seen, of another size, too."""
    slim, plan = ts.remove_dead(model, inputs())
    for x in (inputs(1), inputs(2, 17)):
        expected = model(x)
        assert (slim(x) - expected).abs().max() <= EXACT * expected.abs().max()
    return slim, plan


def made(model: nn.Module, statistics: int = 0) -> nn.Module:
    return random_statistics(model.double(), statistics).eval()


@pytest.mark.parametrize("how", ["hooks", "hooks removed", "by hand"])
def test_filters_that_are_zero_go_with_their_masks(how: str) -> None:
    model = made(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)))
    if how == "by hand":
        zero(model[0], [1, 4, 5])
    else:
        prune.ln_structured(model[0], "weight", amount=3, n=2, dim=0)
    if how == "hooks removed":
        prune.remove(model[0], "weight")
    slim, plan = removed(model)
    assert slim[0].out_channels == slim[2].in_channels == 5
    assert not plan.left_alone
    assert ts.Plan.from_json(plan.to_json()) == plan
    assert ts.verify(model, slim, plan, inputs()) < EXACT  # no constant was moved


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Identity])
@pytest.mark.parametrize("bias", [True, False])
def test_constants_go_into_the_bias_or_the_next_norm(act: type[nn.Module], bias: bool) -> None:
    model = made(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), act(), nn.MaxPool2d(2),
                               nn.Conv2d(8, 6, 3, bias=bias), nn.BatchNorm2d(6), act(), nn.AdaptiveAvgPool2d(1),
                               nn.Flatten(), nn.Linear(6, 4)))
    with torch.no_grad():
        model[0].weight[[0, 3]] = 0
        model[1].weight[5] = 0
        model[5].weight[2] = 0
    slim, plan = removed(model)
    assert (slim[0].out_channels, slim[4].out_channels, slim[9].in_features) == (5, 5, 5)
    assert any(note.startswith("`4.bias`" if bias else "`5.running_mean`") for note in plan.notes) or act is nn.ReLU


def test_a_constant_stays_where_the_reader_pads_or_has_no_bias_unless_it_is_zero() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
            self.padded, self.bare = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = functional.relu(self.norm(self.a(x)))
            return self.padded(y) * self.bare(y)

    model = made(Net())
    with torch.no_grad():
        model.norm.weight[:4] = 0
        model.norm.bias[:4] = torch.tensor([-1.0, 0.5, 0.5, 0.0])
        model.padded.weight[:, 1] = model.bare.weight[:, 1] = 0  # nobody reads it
        model.padded.weight[:, 2] = 0
    slim, plan = removed(model)
    assert slim.a.out_channels == 5
    assert [(entry.name, entry.channels, entry.reason) for entry in plan.left_alone] == [
        ("a", 1, "holds a constant that `bare` reads without a bias to move it to")]
    with torch.no_grad():
        model.padded.weight[:, 2], model.bare.weight[:, 2] = 1.0, 0.0
    slim, plan = removed(model)
    assert "`padded` reads with zeros around the map" in str(plan.left_alone)
    assert ts.remove_dead(model, inputs(), exclude=["a"])[0].a.out_channels == 8


class Blocks(nn.Module):
    """A shortcut, depthwise filters, squeeze-and-excitation and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.expand, self.dw = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm = nn.BatchNorm2d(12)
        self.fc1, self.fc2 = nn.Linear(12, 5), nn.Linear(5, 12)
        self.last = nn.Conv2d(20, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.stem(x))
        y = y + self.b(functional.relu(self.a(y)))
        z = functional.relu(self.norm(self.dw(functional.relu(self.expand(y)))))
        gate = self.fc2(functional.relu(self.fc1(z.mean((2, 3))))).sigmoid()
        return self.last(torch.cat([y, z * gate[:, :, None, None]], 1))


def test_shortcuts_depthwise_gates_and_concatenations() -> None:
    model = made(Blocks())
    zero(model.stem, [0, 1, 2])
    zero(model.b, [0, 1, 5])  # on the shortcut both must be zero
    zero(model.a, [7])
    zero(model.dw, [3, 4])  # what `expand` makes there is of no use
    with torch.no_grad():
        model.norm.bias[[3, 4]] = torch.tensor([-9.0, 9.0]).double()
        model.norm.running_mean[[3, 4]] = 0
        model.fc1.weight[1] = 0  # a constant in the gate
    slim, _ = removed(model)
    widths = {name: tuple(getattr(slim, name).weight.shape[:2]) for name in ("stem", "a", "b", "expand", "dw", "last")}
    assert widths == {"stem": (6, 3), "a": (7, 6), "b": (6, 7), "expand": (11, 6), "dw": (11, 1), "last": (4, 17)}
    assert (slim.fc1.in_features, slim.fc1.out_features, slim.fc2.out_features) == (11, 4, 11)


def test_what_only_dead_channels_need_is_dead() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 10, 1), nn.Conv2d(10, 6, 1, bias=False)
            self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head(y + self.norm(self.b(self.a(y).relu())))

    model = made(Branch())
    with torch.no_grad():
        model.norm.weight[:] = 0  # as residual branches begin
    slim, plan = removed(model)
    assert (slim.stem.out_channels, slim.a.out_channels) == (6, 2)
    assert [(entry.name, entry.channels) for entry in plan.left_alone] == [("a", 2)]


def test_rows_lose_equally_many_and_mixed_channels_stay() -> None:
    model = made(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, bias=False),
                               nn.GroupNorm(1, 8), nn.Conv2d(8, 3, 1)))
    zero(model[0], [0, 1, 5])
    zero(model[2], [6])
    slim, plan = removed(model)
    assert (slim[0].out_channels, slim[2].out_channels) == (6, 8)
    assert {(entry.name, entry.channels, entry.reason.split(" ")[0]) for entry in plan.left_alone} == {
        ("0", 1, "contributes"), ("2", 1, "channels")}


def test_unused_parameters_go_and_come_back_from_files(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1), nn.Linear(4, 4)
            self.auxiliary = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            y = self.a(x).relu()
            return (self.b(y), self.auxiliary(y)) if self.training else self.b(y)

    model = made(Net())
    zero(model.a, [0, 1, 2])
    with torch.no_grad():
        model.auxiliary.weight[:, 0] = 0
    slim, plan = removed(model)
    assert plan.unused == ("unused.weight", "unused.bias")
    assert slim.a.out_channels == 5
    assert [(entry.channels, entry.reason[-16:]) for entry in plan.left_alone] == [(2, "read in training")]
    assert plan.predicted["params"] == sum(p.numel() for p in slim.parameters())
    assert slim.train()(inputs())[1].shape == (2, 2, 10, 10)
    values = plan.to_dict()
    assert ts.Plan.from_dict({key: values[key] for key in values if key != "unused"}).unused == ()  # earlier files
    again = ts.load(ts.save(slim, tmp_path / "slim.safetensors", plan=plan), Net().double())
    assert torch.equal(again(inputs()), slim.eval()(inputs()))


def test_nothing_is_removed_where_code_writes_into_parts_or_draws_numbers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros_like(self.a(x))
            y[:, :, ::2] = self.a(x)[:, :, ::2]
            return self.b(y + torch.rand(1, dtype=y.dtype) * 0)

    model = made(Net())
    zero(model.a, [0, 1])
    assert removed(model)[0].a.out_channels == 6


def test_the_finding_counts_what_the_removal_saves() -> None:
    model = made(Blocks())
    zero(model.a, [0, 1, 2])
    slim, _ = removed(model)
    before, after = (ts.profile(network, inputs()) for network in (model, slim))
    finding = dead_channels(model, inputs(), "NET")
    assert finding is not None
    assert finding.layers == ("a",)
    assert finding.gain == pytest.approx(1 - after.macs / before.macs)
    assert f"{before.macs - after.macs:,} MACs" in finding.evidence
    assert f"{before.params - after.params:,} parameters" in finding.evidence
    assert dead_channels(made(Blocks(), 3), inputs(), "NET") is None
