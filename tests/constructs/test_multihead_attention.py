"""torch's own attention loses heads, or widths of each head, whatever the stream around it keeps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchslim as ts
from constructs.cutting import Cut
from helpers import copied
from torchslim.utils.attention import SlimMultiheadAttention, become_slim

WIDTH = 32
X = torch.randn(2, 3, 8, 8)


class Tokens(nn.Module):
    """Attention between the positions of a map, after a norm that keeps the stream's width."""

    def __init__(self, heads: int = 8, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        self.attention = nn.MultiheadAttention(WIDTH, heads, **options)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        y = y if self.attention.batch_first else y.transpose(0, 1)
        y = self.attention(y, y, y, need_weights=self.weights)[0]
        y = y if self.attention.batch_first else y.transpose(0, 1)
        return self.head(x + y)  # type: ignore[no-any-return]


@settings(max_examples=60)
@given(st.data())
def test_it_is_torchs_attention(data: st.DataObject) -> None:
    flag = st.booleans()
    heads = data.draw(st.sampled_from([1, 2, 4]))
    other = data.draw(st.sampled_from([None, 6]))
    options = {name: data.draw(flag, name) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    plain = nn.MultiheadAttention(8, heads, kdim=other, vdim=other, **options).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    slim = copy.deepcopy(plain)
    become_slim(slim)
    batch = data.draw(st.sampled_from([None, 3]), "batch")
    query, key = (torch.randn(n, 8 if n == 4 else other or 8).double() for n in (4, 5))
    if batch is not None:
        query, key = (x.expand(batch, -1, -1) * torch.rand(batch, 1, 1) for x in (query, key))
        query, key = (x if options["batch_first"] else x.transpose(0, 1) for x in (query, key))
    value = key * 2
    call: dict[str, Any] = {name: data.draw(flag, name) for name in ("need_weights", "average_attn_weights")}
    if other is None and data.draw(flag, "to itself"):
        key = value = query
    length = 4 if key is query else 5
    kind = data.draw(st.sampled_from([torch.bool, torch.float64]), "mask")
    if data.draw(flag, "mask of pairs"):
        shape = (4, length) if data.draw(flag, "shared") else ((batch or 1) * heads, 4, length)
        call["attn_mask"] = torch.rand(shape) < 0.2 if kind == torch.bool else torch.randn(shape).double()
    if data.draw(flag, "mask of keys"):
        shape = (length,) if batch is None else (batch, length)
        call["key_padding_mask"] = torch.zeros(shape, dtype=torch.bool)
        call["key_padding_mask"][..., 0] = True
        if kind != torch.bool and "attn_mask" in call:
            call["key_padding_mask"] = call["key_padding_mask"].double() * -3
    results = [attention(query, key, value, **call) for attention in (plain, slim)]
    for expected, found in zip(*results, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_hint_without_its_mask_is_refused_as_torch_does() -> None:
    attention = nn.MultiheadAttention(8, 2)
    become_slim(attention)
    x = torch.randn(4, 1, 8)
    with pytest.raises(RuntimeError, match="attn_mask"):
        attention(x, x, x, is_causal=True)


@pytest.mark.parametrize("options", [
    {"batch_first": True}, {"weights": True}, {"bias": False, "batch_first": True}, {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True}, {"dropout": 0.5}], ids=str)
def test_whole_heads_go(options: dict[str, Any], tmp_path: Path) -> None:
    cut = Cut(Tokens(**options), X, macs=0.6, training=not options.get("dropout"))
    heads = cut.attribute_updates["attention.num_heads"][1]
    kept = torch.tensor(cut.kept("attention.out_proj.weight", 1)).view(heads, 4)
    assert (kept % 4 == torch.arange(4)).all()
    rows = kept.ravel() + WIDTH * torch.arange(3)[:, None]
    assert cut.kept("attention.in_proj_weight") == tuple(rows.ravel().tolist())
    assert cut.uncut("norm.weight", "stem.weight")
    assert cut.plan.budgets[0].share <= 0.6
    assert type(cut.slim.attention) is SlimMultiheadAttention
    cut.loads_back(tmp_path)
    # Torch's own code, with the outputs of the heads that went unread.
    silenced = copied(cut.model)
    gone = [column for column in range(WIDTH) if column not in kept.ravel().tolist()]
    with torch.no_grad():
        silenced.get_parameter("attention.out_proj.weight")[:, gone] = 0
        torch.testing.assert_close(cut.slim(X), silenced(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"kdim": WIDTH, "vdim": WIDTH, "bias": False}], ids=str)
def test_few_heads_lose_widths_and_keep_their_scale(options: dict[str, Any]) -> None:
    cut = Cut(Tokens(heads=2, **options), X, macs=0.6)
    columns = torch.tensor(cut.kept("attention.out_proj.weight", 1)).view(2, -1)
    assert (columns // 16 == torch.arange(2)[:, None]).all()
    assert "attention.num_heads" not in cut.attribute_updates
    assert cut.slim.get_submodule("attention").head_dim == 16


def test_a_stream_that_no_norm_mixes_goes_with_it() -> None:
    model = Tokens(batch_first=True)
    model.norm = nn.Identity()  # type: ignore[assignment]
    cut = Cut(model, X, macs=0.3)
    stream = cut.size("stem.weight")
    assert cut.size("attention.out_proj.weight") == cut.size("attention.in_proj_weight", 1) == stream
    assert cut.attribute_updates["attention.embed_dim"] == (WIDTH, stream)


class Layers(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.layers, self.head = nn.Conv2d(3, WIDTH, 2, 2), layers, nn.Linear(WIDTH, 5)
        self.queries = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        further = () if isinstance(self.layers, nn.TransformerEncoder) else (self.queries.expand(len(x), -1, -1),)
        return self.head(self.layers(x, *further))  # type: ignore[no-any-return]


def encoder(layers: int, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 8, 48, 0.0, batch_first=True, **options)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


@pytest.mark.parametrize("layers", [encoder(2), encoder(1, norm_first=True), nn.Transformer(
    WIDTH, 8, 1, 1, 48, 0.0, batch_first=True)], ids=["encoder", "norm first", "with decoder"])
def test_torchs_transformers(layers: nn.Module) -> None:
    cut = Cut(Layers(layers), X, macs=0.5)
    assert any(name.endswith(".num_heads") for name in cut.attribute_updates)
    assert any(name.endswith("linear1.weight") for name in cut.plan.kept)
    with torch.inference_mode():  # where torch would take a kernel that knows the original's widths only
        fast = cut.slim(X)
    torch.testing.assert_close(fast, cut.slim(X).detach(), rtol=1e-4, atol=1e-5)


def test_cut_again() -> None:
    cut = Cut(Tokens(batch_first=True), X, macs=0.8)
    again = Cut(cut.slim, X, macs=0.6)
    assert again.attribute_updates["attention.num_heads"][1] < cut.attribute_updates["attention.num_heads"][1]


class Subclass(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class KeepsWeights(Tokens):
    """Holds the attention weights for whoever wants to draw them."""

    held: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        y, weights = self.attention(*[self.norm(x)] * 3)
        self.maps = {"last": weights} if self.weights else weights
        return self.head(x + y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("weights", [False, True])
def test_weights_that_a_module_holds_keep_their_heads(weights: bool) -> None:
    cut = Cut(KeepsWeights(batch_first=True, weights=weights), X, macs=0.6)
    assert "attention.num_heads" not in cut.attribute_updates
    assert "channels are mixed by `attention` (aten.mean)" in {entry.reason for entry in cut.plan.left_alone}


def test_other_peoples_attention_is_left_alone() -> None:
    model = Tokens(batch_first=True)
    model.attention = Subclass(WIDTH, 8, batch_first=True)
    cut = Cut(model, X, macs=0.6)
    assert cut.uncut("attention.in_proj_weight")
    assert type(cut.slim.attention) is Subclass


def test_the_model_keeps_its_own_class() -> None:
    model = Tokens(batch_first=True).eval()
    ts.prune(model, X, macs=0.6)
    assert type(model.attention) is nn.MultiheadAttention


def test_it_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    slim, _ = ts.prune(Tokens(batch_first=True).eval(), X, macs=0.6)
    assert ts.export(slim, X, tmp_path / "slim.onnx").error < 1e-4
