"""Rows of position tables, look-up buffers and positions of any kind are no channels, and only channels go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

import torchslim as ts
from helpers import random_statistics

SIDE, TOKENS, HEADS = 4, 16, 2
ROWS = (2 * SIDE - 1) ** 2


def relative_index() -> Tensor:
    """For each pair of positions the row of a table of relative positions, shape (tokens, tokens)."""
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    dy, dx = ((one[:, None] - one[None]) + SIDE - 1 for one in (y, x))
    return dy * (2 * SIDE - 1) + dx


class Attention(nn.Module):
    """A convolution, attention with a bias of relative positions, a linear layer."""

    def __init__(self, bias: Callable[[Any], Tensor], **tables: Any) -> None:
        super().__init__()
        self.conv, self.qkv, self.out = nn.Conv2d(3, 24, 1), nn.Linear(24, 24), nn.Linear(8, 5)
        self.bias = bias
        self.register_buffer("index", relative_index())
        self.register_buffer("lookup", functional.one_hot(relative_index().flatten(), ROWS).float())
        for name, table in tables.items():
            setattr(self, name, table)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(len(x), TOKENS, 3, HEADS, 4).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) + self.bias(self)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(len(x), TOKENS, 8))


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def by_heads(bias: Tensor) -> Tensor:
    return bias.view(TOKENS, TOKENS, HEADS).permute(2, 0, 1)


TABLES: dict[str, tuple[Callable[[Any], Tensor], dict[str, Any]]] = {
    "rows by index": (lambda s: by_heads(s.table[s.index.flatten()]), {"table": table(ROWS, HEADS)}),
    "rows by index_select": (lambda s: by_heads(s.table.index_select(0, s.index.flatten())),
                             {"table": table(ROWS, HEADS)}),
    "columns by index": (lambda s: s.table[:, s.index], {"table": table(HEADS, ROWS)}),
    "rows by gather": (lambda s: by_heads(s.table.gather(0, s.index.view(-1, 1).expand(-1, HEADS))),
                       {"table": table(ROWS, HEADS)}),
    "an embedding": (lambda s: s.table(s.index).permute(2, 0, 1), {"table": nn.Embedding(ROWS, HEADS)}),
    "rows by a look-up": (lambda s: by_heads(s.lookup @ s.table), {"table": table(ROWS, HEADS)}),
    "columns by a look-up": (lambda s: (s.table @ s.lookup.T).view(HEADS, TOKENS, TOKENS),
                             {"table": table(HEADS, ROWS)}),
    "rows by einsum": (lambda s: by_heads(torch.einsum("rh,pr->ph", s.table * 2, s.lookup)),
                       {"table": table(ROWS, HEADS)}),
    "an interpolated table": (lambda s: functional.interpolate(s.table[None], TOKENS, mode="linear")[0].view(
        HEADS, 1, TOKENS), {"table": table(HEADS, ROWS)}),
    "a table for each pair": (lambda s: s.table, {"table": table(HEADS, TOKENS, TOKENS)}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_rows_of_position_tables_stay(kind: str) -> None:
    bias, tables = TABLES[kind]
    model = random_statistics(Attention(bias, **tables)).eval()
    for budget in ("params", "macs"):
        plan = ts.plan(model, torch.randn(2, 3, SIDE, SIDE), importance="random", strict=False, **{budget: 0.3})
        assert "conv.weight" in plan.kept
        assert not {name for name in plan.kept if name.startswith(("table", "lookup", "index"))}
    assert ts.verify(model, ts.apply(model, plan), plan, torch.randn(2, 3, SIDE, SIDE)) < 1e-10


def test_what_makes_a_table_is_cut_and_its_rows_stay() -> None:
    """A table computed of coordinates by layers, and one that is a product: their inner widths are channels."""
    mlp = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, HEADS))
    model = random_statistics(Attention(lambda s: by_heads((s.mlp(s.grid) + s.left @ s.right)[s.index.flatten()]),
                                        mlp=mlp, left=table(ROWS, 8), right=table(8, HEADS),
                                        grid=nn.Buffer(torch.randn(ROWS, 3)))).eval()
    x = torch.randn(2, 3, SIDE, SIDE)
    slim, _ = ts.prune(model, x, params=0.3, importance="random", strict=False)
    assert slim.mlp[0].out_features < 32
    assert slim.left.shape[1] == slim.right.shape[0] < 8
    assert slim.grid.shape == (ROWS, 3)
    assert len(slim.left) == ROWS


class Filter(nn.Module):
    """A filter of frequencies along the positions, by fixed transforms, and what mixes the positions themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)
        self.there, self.back = nn.Buffer(torch.randn(TOKENS, 12)), nn.Buffer(torch.randn(12, TOKENS))
        self.filter, self.places = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(1, TOKENS, 16))
        self.scale = nn.Parameter(torch.randn(16))
        self.mix = nn.Sequential(nn.Linear(TOKENS, 24), nn.GELU(), nn.Linear(24, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2)
        y = (y @ self.there * self.filter) @ self.back
        y = (y + self.mix(y)).transpose(1, 2)
        return self.out((y + self.places) * self.scale)


def test_frequencies_and_tokens_stay_and_the_widths_about_them_go() -> None:
    model = random_statistics(Filter()).eval()
    slim, plan = ts.prune(model, torch.randn(2, 3, SIDE, SIDE), params=0.3, importance="random", strict=False)
    assert not {"there", "back", "filter"} & plan.kept.keys()
    assert slim.mix[0].out_features < 24
    assert slim.mix[0].in_features == slim.mix[2].out_features == TOKENS
    width = slim.conv.out_channels
    assert slim.places.shape == (1, TOKENS, width)
    assert slim.scale.shape == (width,)
    assert width < 16


def layer_dims(model: nn.Module) -> Iterator[tuple[str, int]]:
    """The dimensions of the weights of torch's layers along which their channels lie."""
    for name, module in model.named_modules():
        dims = ((0, 1) if isinstance(module, _ConvNd | nn.Linear | nn.RNNBase) else
                (1,) if isinstance(module, nn.Embedding) else
                (0,) if isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm) else ())
        for own, _ in module.named_parameters(recurse=False):
            yield from ((f"{name}.{own}".removeprefix("."), dim) for dim in dims)


NETWORKS = """
    torchslim:shufflenet_v1_cifar torchslim:unet torchvision:mobilenet_v3_small torchvision:swin_t torchvision:swin_v2_t
    timm:test_vit timm:gmlp_ti16_224 timm:coat_lite_tiny timm:edgenext_xx_small timm:lambda_resnet26t
    timm:efficientformerv2_s0 timm:levit_128s timm:test_byobnet
"""


@pytest.mark.parametrize("name", NETWORKS.split())
def test_all_that_may_be_cut_runs_through_channels_of_a_layer(name: str) -> None:
    with torch.device("meta"):
        model = ts.create_model(name).eval()
    side = getattr(model, "default_cfg", {"input_size": (3, 256, 256)})["input_size"][-1]
    channels = set(layer_dims(model))
    groups = ts.groups(model, torch.zeros(1, 3, side, side, device="meta"), allow_approximate=True)
    assert any(not group.frozen for group in groups)
    for group in groups:
        assert group.frozen or channels & {(member.name, member.dim) for member in group.members}, group
