"""Code that remembers its widths is mended, or its channels stay, with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

import torchslim
from helpers import oracle_error, random_statistics
from torchslim.planning import width_repair


class Remembering(nn.Module):
    """A convolution, something that remembers its width, a convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Conv2d(24, 5, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.middle(relu(self.bn(self.stem(x))))).relu())


class EqualParts(Remembering):
    width = None

    def __init__(self) -> None:
        super().__init__()
        self.width = 4

    def middle(self, x: Tensor) -> Tensor:
        a, b, c, d = torch.split(x, self.width, 1)
        return torch.cat([a, b.relu(), c.sigmoid(), d.tanh()], 1)


class ListedParts(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [10, 6]

    def middle(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.sizes, 1)
        return torch.cat([b.sigmoid(), a], 1)


class SlicedParts(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.split_at = 5

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.split_at].tanh(), x[:, self.split_at:]], 1)


class ShuffledView(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.groups, self.width = 2, 16

    def middle(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        return x.view(b, self.groups, self.width // self.groups, h, w).transpose(1, 2).reshape(b, self.width, h, w)


class FixedBlur(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.channels = 16
        self.register_buffer("kernel", torch.rand(16, 1, 3, 3))

    def middle(self, x: Tensor) -> Tensor:
        return conv2d(x, self.kernel, padding=1, groups=self.channels)


class PlainTensorAttribute(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.randn(1, 16, 1, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.offset.to(x.dtype)


MENDED = {
    EqualParts: {"width"},
    ListedParts: {"sizes"},
    SlicedParts: {"split_at"},
    ShuffledView: {"width"},
    FixedBlur: {"channels"},
    PlainTensorAttribute: set(),
}
OWN_LAYERS = {"in_channels", "out_channels", "groups", "num_features"}


@pytest.mark.parametrize("kind", MENDED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_remembered_widths_are_mended_and_listed(kind: type[Remembering], share: float) -> None:
    model = random_statistics(kind()).eval()
    inputs = torch.randn(2, 3, 8, 8)
    slim, plan = torchslim.prune(model, inputs, macs=share, only=["stem"], strict=False)
    assert slim.stem.out_channels < 16, plan.left_alone
    assert {update.attribute for update in plan.attribute_updates if update.module == ""} - OWN_LAYERS == MENDED[kind]
    assert torchslim.verify(model, slim, plan, inputs) < 1e-12
    if kind is not PlainTensorAttribute:  # which .double() does not convert
        assert oracle_error(model, slim, plan, inputs) < 1e-12
    for update in plan.attribute_updates:
        assert getattr(model.get_submodule(update.module), update.attribute) in (update.old, list(
            update.old) if isinstance(update.old, tuple) else update.old)


class Hardcoded(Remembering):
    def middle(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 16, -1).view(x.shape)


def test_what_cannot_be_mended_stays_with_its_reason() -> None:
    model = random_statistics(Hardcoded()).eval()
    inputs = torch.randn(2, 3, 8, 8)
    slim, plan = torchslim.prune(model, inputs, macs=0.6)
    assert slim.stem.out_channels == 16
    assert slim.mix.out_channels < 24
    (reason,) = [entry.reason for entry in plan.left_alone if entry.name == "stem" and entry.channels == 16]
    assert reason == "remembers a width in `model` (aten.view)"
    assert torchslim.verify(model, slim, plan, inputs) < 1e-12


def test_planning_leaves_the_attributes_of_the_model_as_they_were() -> None:
    model = ListedParts().eval()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torchslim.plan(model, torch.randn(1, 3, 8, 8), macs=0.5)
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert all(module.__dict__[key] is item for key, item in before[name].items())
    assert model.sizes == [10, 6]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


class Reshaped(nn.Module):
    """A map that can't be cut is given the shape of one half of another, as attention's values often are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = (
            nn.Conv2d(16, width, 3, padding=1) for width in (16, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        gate = self.gate(x).softmax(1).flatten(1).view(len(x), b.shape[1], *b.shape[2:])
        return x + self.last(torch.cat([a, gate], 1)) + self.last(torch.cat([b, gate], 1))


def test_a_width_that_shapes_other_channels_is_found_in_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []

    def counted(*arguments: object) -> width_repair.SlimRun:
        runs.append(arguments)
        return run_at_widths(*arguments)  # type: ignore[arg-type]

    run_at_widths = width_repair.run_at_widths
    monkeypatch.setattr(width_repair, "run_at_widths", counted)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), *(Reshaped() for _ in range(6)), nn.Conv2d(16, 24, 1),
                          nn.Conv2d(24, 5, 1))
    x = torch.randn(1, 3, 8, 8)
    slim, plan = torchslim.prune(random_statistics(model).eval(), x, macs=0.6, scope="uniform")
    assert slim[0].out_channels < 16
    assert slim[7].out_channels < 24
    assert {name for name in plan.kept if ".first.weight" in name and 0 in plan.kept[name]} == set()
    assert len(runs) < 12


class Split(nn.Module):
    """Halves of a map, one of which goes through a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.first, self.inner, self.last = nn.Conv2d(6, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.first(x).relu(), self.width, 1)
        return self.last(torch.cat([self.inner(a), b], 1))


def test_a_width_that_sister_modules_keep_is_not_mended_for_another_of_the_same_size() -> None:
    model = random_statistics(nn.Sequential(nn.Conv2d(3, 6, 1), Split(), Split(), Split(), nn.Conv2d(6, 5, 1)))
    x = torch.randn(1, 3, 6, 6)
    plan = torchslim.plan(model, x, scope={"1.first": 0.5, "2.first": 0.5, "3.inner": 0.5})
    slim = torchslim.apply(model, plan)
    assert [tuple(len(slim.get_parameter(f"{n}.{layer}.weight")) for layer in ("first", "inner"))
            for n in (1, 2, 3)] == [(8, 8), (8, 8), (16, 4)]
    assert {str(update) for update in plan.attribute_updates if update.attribute == "width"} == {
        "1.width: 8 -> 4", "2.width: 8 -> 4"}
    assert {entry.name for entry in plan.left_alone} == {"0", "4"}
    assert oracle_error(model, slim, plan, x) < 1e-12
