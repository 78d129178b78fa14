"""Attention loses whole heads or, where it has few, equally many widths of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchslim as ts
from constructs.cutting import Cut
from helpers import counted_macs
from torchslim.planning import width_repair
from torchslim.tracing.runs import retrace

X = torch.randn(2, 3, 8, 8)
WIDTH = 32


class Tokens(nn.Module):
    """Attention between the positions of a map, after a norm that keeps the stream's width."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(self.norm(x)) + x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """As people write it: packed or separate, by hand or fused, with a bias for each pair of positions."""

    def __init__(self, heads: int = 8, packed: bool = True, fused: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, WIDTH // heads, WIDTH
        self.scale, self.fused = self.head_dim ** -0.5, fused
        names = ["qkv"] if packed else ["q", "k", "v"]
        self.into = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH * len(name)) for name in names})
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(31, heads)) if bias else None
        self.register_buffer("places", torch.arange(16)[:, None] - torch.arange(16) + 15)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if "qkv" in self.into:
            qkv = self.into["qkv"](x).reshape(b, n, 3, self.num_heads, self.head_dim)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).view(b, n, self.num_heads, -1).transpose(1, 2) for layer in self.into.values())
        bias = None if self.table is None else self.table[self.places].permute(2, 0, 1)[None]
        if self.fused:
            x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = (q * self.scale) @ k.mT
            x = (scores if bias is None else scores + bias).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, self.inner))  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [
    {}, {"fused": True}, {"packed": False}, {"packed": False, "fused": True, "bias": True}, {"bias": True}], ids=str)
def test_whole_heads_go(options: dict[str, Any]) -> None:
    cut = Cut(Tokens(Attention(**options)), X, macs=0.6)
    heads = cut.attribute_updates["attention.num_heads"][1]
    assert cut.attribute_updates["attention.inner"] == (WIDTH, 4 * heads)
    kept = torch.tensor(cut.kept("attention.proj.weight", 1)).view(heads, 4)
    assert (kept % 4 == torch.arange(4)).all()
    makers = [f"attention.into.{name}.weight" for name in cut.model.attention.into]  # type: ignore[union-attr]
    assert all(cut.kept(name)[:len(kept.ravel())] == tuple(kept.ravel().tolist()) for name in makers)
    assert cut.plan.budgets[0].met == counted_macs(unfused(cut.slim), X)
    assert 0.5 < cut.plan.budgets[0].share <= 0.6
    if options.get("bias"):
        assert cut.kept("attention.table", 1) == tuple((kept[:, 0] // 4).tolist())


def unfused(model: nn.Module) -> nn.Module:
    model.attention.fused = False  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize("packed", [True, False])
def test_few_heads_lose_equally_many_widths(packed: bool) -> None:
    cut = Cut(Tokens(Attention(2, packed)), X, oracle=False, macs=0.5)
    assert 0.48 < cut.plan.budgets[0].share <= 0.5
    width = cut.attribute_updates["attention.inner"][1] // 2
    for name in cut.model.attention.into:  # type: ignore[union-attr]
        kept = torch.tensor(cut.kept(f"attention.into.{name}.weight")).view(-1, width)
        assert (kept // 16 == torch.arange(len(kept))[:, None]).all()  # of each head the same number
    assert cut.plan.budgets[0].met == counted_macs(cut.slim, X)
    check_with_zeros_where_channels_are_made(cut)


def check_with_zeros_where_channels_are_made(cut: Cut) -> None:
    """What is gone is zero where it is made: products of it with anything are, too."""
    for name, dims in cut.plan.kept.items():
        gone = sorted(set(range(cut.before(name)[0])) - set(dims.get(0, range(cut.before(name)[0]))))
        cut.model.get_parameter(name).data[gone] = 0
    torch.testing.assert_close(cut.slim.double()(X.double()), cut.model.double()(X.double()), rtol=0, atol=1e-12)


def test_a_wrong_width_is_found() -> None:
    cut = Cut(Tokens(Attention(2, packed=False)), X, oracle=False, macs=0.5)
    with torch.no_grad():
        weight = cut.slim.attention.into["k"].weight  # type: ignore[union-attr, index]
        weight[[0, 1]] = weight[[1, 0]]
    assert ts.verify(cut.model, cut.slim, cut.plan, X) > 1e-3


def test_a_scale_that_is_computed_from_the_width_keeps_it() -> None:
    cut = Cut(Tokens(Attention(2, fused=True)), X, macs=0.5)
    assert cut.uncut("attention.into.qkv.weight", "attention.proj.weight")


class Area(nn.Module):
    """Queries and keys narrower than values, in one convolution; the values are as wide as the map."""

    def __init__(self, out: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.key_dim = heads, 16 // heads, 8 // heads
        self.scale = self.key_dim ** -0.5
        self.qkv, self.proj = nn.Conv2d(16, 32, 1), nn.Conv2d(16, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        scores = (q.mT @ k) * self.scale
        return self.proj((v @ scores.softmax(-1).mT).view(b, c, h, w))  # type: ignore[no-any-return]


def test_keys_go_where_values_are_as_wide_as_the_map() -> None:
    cut = Cut(nn.Sequential(nn.Conv2d(3, 16, 3), Area()), X, oracle=False, params=0.9, exclude=["0"])
    assert cut.attribute_updates["1.key_dim"][1] < 4
    assert cut.size("1.qkv.weight") == 16 + 4 * cut.attribute_updates["1.key_dim"][1]
    assert cut.uncut("0.weight")


def test_values_lose_as_many_as_the_map_whose_width_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    monkeypatch.setattr(width_repair, "retrace", lambda *args: runs.append(0) or retrace(*args))
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Area(16), nn.ReLU(), Area())
    cut = Cut(model, X, oracle=False, macs=0.5)
    assert 0.45 < cut.plan.budgets[0].share <= 0.5
    assert cut.plan.budgets[0].met == counted_macs(cut.slim, X)
    for module, maker in (("1", "0"), ("3", "1.proj")):
        width, keys = cut.size(f"{maker}.weight"), cut.attribute_updates.get(f"{module}.key_dim", (4, 4))[1]
        assert width == cut.size(f"{module}.proj.weight", 1) == 2 * cut.attribute_updates[f"{module}.head_dim"][1] < 16
        kept = torch.tensor(cut.kept(f"{module}.qkv.weight")).view(2, 2 * keys + width // 2)
        assert (kept // 16 == torch.arange(2)[:, None]).all()
    assert len(runs) < 16
    check_with_zeros_where_channels_are_made(cut)


class NonLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Conv2d(16, 16, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        return x + self.out((v @ (q.mT @ k).softmax(-1).mT).unflatten(2, x.shape[2:]))  # type: ignore[no-any-return]


class LinearAttention(NonLocal):
    heads = 4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2).unflatten(1, (4, -1)) for layer in (self.q, self.k, self.v))
        return self.out(((v @ k.mT.relu()) @ q.relu()).flatten(1, 2).unflatten(2, x.shape[2:]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("attention", [NonLocal, LinearAttention])
def test_attention_over_a_map_meets_its_budget(attention: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(8, 16), attention(), nn.Conv2d(16, 4, 1))
    cut = Cut(model, X, oracle=False, macs=0.5)
    assert 0.47 < cut.plan.budgets[0].share <= 0.5
    assert cut.size("2.q.weight") == cut.size("2.k.weight")
    assert cut.plan.budgets[0].met == counted_macs(cut.slim, X)
