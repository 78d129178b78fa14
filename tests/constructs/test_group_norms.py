"""Group norms lose whole groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut
from helpers import Calls, conv

X = torch.randn(2, 3, 8, 8)


class Residual(nn.Module):
    """Two convolutions, each after a norm and an activation, and a shortcut."""

    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, channels), conv(channels, out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, out), conv(out, out)
        self.skip = nn.Identity() if channels == out else conv(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(functional.silu(self.norm2(h)))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Norms of other group sizes before and after concatenations: groups of 3 straddle the two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = conv(3, 16), Residual(16, 32, 8)
        self.up, self.norm, self.last = Residual(48, 16, 16), nn.GroupNorm(4, 16, affine=False), conv(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        h = functional.interpolate(self.down(functional.max_pool2d(x, 2)), scale_factor=2)
        return self.last(self.norm(self.up(torch.cat([x, h], 1))).relu())  # type: ignore[no-any-return]


def test_a_unet_with_group_norms_meets_its_budget() -> None:
    cut = Cut(UNet(), X, macs=0.5)
    assert 0.48 < cut.plan.budgets[0].share <= 0.5
    norms = {name: norm for name, norm in cut.slim.named_modules() if isinstance(norm, nn.GroupNorm)}
    assert any(norm.num_groups < cut.model.get_submodule(name).num_groups for name, norm in norms.items())
    for name, norm in norms.items():
        before = cut.model.get_submodule(name)
        assert norm.num_channels * before.num_groups == before.num_channels * norm.num_groups
        size = before.num_channels // before.num_groups
        kept = torch.tensor(cut.plan.kept.get(f"{name}.weight", {}).get(0, range(before.num_channels)))
        assert (kept.view(-1, size) % size == torch.arange(size)).all()  # whole groups, each in its order


def functional_norm(s: Calls, x: Tensor) -> Tensor:
    return s.b(functional.group_norm(s.a(x), s.groups, s.scale, s.scale))  # type: ignore[no-any-return]


def by_hand(s: Calls, x: Tensor) -> Tensor:
    x = s.a(x)
    h = x.view(len(x), s.groups, -1, *x.shape[2:])
    return s.b(((h - h.mean((2, 3, 4), True)) * h.var((2, 3, 4), keepdim=True).rsqrt()).view(x.shape))  # type: ignore[no-any-return]


def literal(s: Calls, x: Tensor) -> Tensor:
    return s.b(functional.group_norm(s.a(x), 8, s.scale))  # type: ignore[no-any-return]


def model(forward: object) -> Calls:
    made = Calls(forward, a=conv(3, 32), b=conv(32, 4))  # type: ignore[arg-type]
    made.groups, made.scale = 8, nn.Parameter(torch.rand(32))  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("forward", [functional_norm, by_hand])
def test_an_attribute_that_holds_the_number_of_groups_is_updated(forward: object) -> None:
    cut = Cut(model(forward), X, macs=0.5)
    assert cut.attribute_updates == {"groups": (8, 4)}
    assert cut.plan.budgets[0].share == 0.5


def test_a_number_of_groups_in_the_code_stays() -> None:
    cut = Cut(model(literal), X, macs=0.5)
    assert cut.uncut("a.weight")
    assert "a fixed number of groups in `model` (aten.native_group_norm)" in cut.reasons("a")


def test_layers_keep_multiples_though_groups_go() -> None:
    cut = Cut(nn.Sequential(conv(3, 48), nn.GroupNorm(24, 48), conv(48, 4)), X, macs=0.6, round_to=8)
    assert cut.size("0.weight") == 24
