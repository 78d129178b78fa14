"""Convolutions and matrix products, operations of one's own, and operations without a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import DeformConv2d

import torchslim as ts
from helpers import Calls, conv, counted_macs, random_statistics
from rules.movement import Movement
from torchslim import rules
from torchslim.coupling.coupling import Coupling, couple, trace_modes
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.rules import register_rule
from torchslim.rules.labels import LabelSpace
from torchslim.tracing.graph import Op

SHAPE = (2, 6, 5, 5)


def coupled(model: nn.Module, x: Tensor) -> Coupling:
    return couple(trace_modes(model, x))


def made_by(groups: tuple[ChannelGroup, ...], layer: str) -> ChannelGroup:
    return next(group for group in groups if layer in group.makers)


def classes(coupling: Coupling, name: str, dim: int) -> list[int]:
    return coupling.by_dimension[name, dim].labels.tolist()


# Convolutions


@pytest.mark.parametrize(("layer", "x"), [
    (nn.Conv1d(6, 4, 3), torch.randn(2, 6, 9)), (nn.Conv2d(6, 4, 3, 2, 1, 2), torch.randn(2, 6, 9, 9)),
    (nn.Conv3d(6, 4, 2), torch.randn(2, 6, 3, 3, 3)), (nn.Conv2d(6, 4, (1, 3)), torch.randn(6, 5, 5)),
    (nn.Conv2d(6, 4, 3, padding="same", padding_mode="circular"), torch.randn(2, 6, 4, 4)),
    (nn.ConvTranspose1d(6, 4, 3), torch.randn(2, 6, 5)), (nn.ConvTranspose2d(6, 4, 2, 2), torch.randn(2, 6, 4, 4)),
    (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), torch.randn(2, 6, 4, 4)),
    (nn.ConvTranspose3d(6, 4, 2, 2), torch.randn(2, 6, 2, 2, 2)),
], ids=lambda item: str(item) if isinstance(item, nn.Module) else "x")
def test_a_convolution_reads_one_dimension_and_makes_the_other(layer: nn.Module, x: Tensor) -> None:
    first = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[layer.weight.dim() - 2](6, 6, 1)
    coupling = coupled(nn.Sequential(first, layer), x)
    read, made = (0, 1) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else (1, 0)
    assert classes(coupling, "1.weight", read) == classes(coupling, "0.weight", 0) == classes(coupling, "0.bias", 0)
    assert classes(coupling, "1.weight", made) == classes(coupling, "1.bias", 0)
    roles = {(m.name, m.dim): m.role for group in coupling.groups for m in group.members}
    assert roles["1.weight", read] == "reads"
    assert roles["1.weight", made] == "makes"
    assert roles["1.bias", 0] == "follows"


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(6, 6, 3, groups=6)], ids=str)
def test_a_depthwise_convolution_follows_its_input(layer: nn.Module) -> None:
    coupling = coupled(nn.Sequential(nn.Conv2d(6, 6, 1), layer, nn.Conv2d(6, 3, 1)), torch.randn(SHAPE))
    assert (classes(coupling, "0.weight", 0) == classes(coupling, "1.weight", 0) == classes(coupling, "1.bias", 0)
            == classes(coupling, "2.weight", 1))
    group = made_by(coupling.groups, "0")
    assert {m.name: m.role for m in group.members} == {
        "0.weight": "makes", "0.bias": "follows", "1.weight": "follows", "1.bias": "follows", "2.weight": "reads"}


def test_a_depthwise_convolution_with_a_multiplier() -> None:
    moved = Movement(lambda s, x: s.dw(x), SHAPE, dw=nn.Conv2d(6, 18, 3, groups=6)).check()
    assert moved.free
    assert moved.outputs()[0][0, 0, :, 0, 0].tolist() == [one for one in moved.classes.tolist() for _ in range(3)]


def test_a_grouped_convolution_counts_its_inputs_over_all_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 2, 1))
    coupling = coupled(model, torch.randn(2, 3, 5, 5))
    touch = coupling.by_dimension["1.weight", 1]
    assert touch.groups == 3
    assert touch.labels.tolist() == classes(coupling, "0.weight", 0)
    assert coupling.grouped_weights == {"1.weight"}
    rows = [matrix.labels.tolist() for matrix in coupling.constraints]
    assert torch.tensor(classes(coupling, "0.weight", 0)).view(3, 2).tolist() in rows
    assert torch.tensor(classes(coupling, "1.weight", 0)).view(3, 3).tolist() in rows


def test_a_grouped_transposed_convolution_counts_its_filters_over_all_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 2, groups=2), nn.Conv2d(8, 2, 1))
    coupling = coupled(model, torch.randn(2, 3, 5, 5))
    touch = coupling.by_dimension["1.weight", 1]
    assert touch.groups == 2
    assert touch.labels.tolist() == classes(coupling, "2.weight", 1)
    assert classes(coupling, "1.weight", 0) == classes(coupling, "0.weight", 0)
    rows = [matrix.labels.tolist() for matrix in coupling.constraints]
    assert torch.tensor(classes(coupling, "0.weight", 0)).view(2, 3).tolist() in rows
    assert torch.tensor(classes(coupling, "2.weight", 1)).view(2, 4).tolist() in rows


def test_the_networks_input_and_output_stay() -> None:
    coupling = coupled(nn.Sequential(conv(3, 4), conv(4, 5)), torch.randn(1, 3, 5, 5))
    assert {group.name: group.frozen for group in coupling.groups if group.frozen} == {
        "0": "reads the network's input in `0` (aten.convolution)", "1": "the network's output"}


@pytest.mark.parametrize(("first", "reason"), [
    (conv(8, 8, groups=4), "reads the network's input in `0` (aten.convolution)"),
    (conv(8, 8, groups=8), "filters the network's input in `0` (aten.convolution)"),
    (nn.Linear(8, 8), "reads the network's input in `0` (aten.addmm)"),
    (nn.Sequential(nn.Hardswish(), conv(8, 8)), "reads channels that can't be cut in `0.1` (aten.convolution)"),
], ids=["grouped", "depthwise", "linear", "after an activation"])
def test_reasons_tell_the_networks_input_from_other_channels(first: nn.Module, reason: str) -> None:
    x = torch.randn(2, 8) if isinstance(first, nn.Linear) else torch.randn(2, 8, 5, 5)
    groups = ts.groups(nn.Sequential(first, nn.Hardswish()), x)
    assert reason in {group.frozen for group in groups}


def test_a_weight_that_is_computed() -> None:
    """Scaled per filter, standardised by nothing: the labels pass through the arithmetic."""
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.gain = nn.Parameter(torch.randn(4, 6, 3, 3)), nn.Parameter(torch.ones(4, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight * self.gain)

    coupling = coupled(nn.Sequential(conv(3, 6), Scaled(), conv(4, 2)), torch.randn(1, 3, 8, 8))
    assert classes(coupling, "1.weight", 1) == classes(coupling, "0.weight", 0)
    assert classes(coupling, "1.weight", 0) == classes(coupling, "1.gain", 0) == classes(coupling, "2.weight", 1)
    assert not made_by(coupling.groups, "0").frozen
    assert not made_by(coupling.groups, "1").frozen


def test_a_kernel_given_by_the_input_ties_all_that_it_reads_and_makes() -> None:
    moved = Movement(lambda s, x: functional.conv2d(x, s.make(x.mean((0, 2, 3))).view(4, 6, 1, 1)), SHAPE,
                     make=nn.Linear(6, 24)).check()
    assert len(set(moved.classes.tolist())) == 1


def test_one_kernel_for_all_channels() -> None:
    """A blur that is applied to every channel by itself, as a batch of one-channel maps."""
    blur = torch.ones(1, 1, 3, 3, dtype=torch.float64)

    def function(_: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return functional.conv2d(x.reshape(b * c, 1, h, w), blur, padding=1).view(b, c, h, w)

    assert Movement(function, SHAPE).check().free


def test_a_blur_as_wide_as_the_channels_follows_them() -> None:
    moved = Movement(lambda s, x: functional.conv2d(x, s.blur.kernel, groups=x.shape[1]), SHAPE, blur=Blur()).check()
    assert moved.free
    touched = {touch.name: moved.of[touch.labels].tolist() for touch in moved.space.declared.labeled_dims}
    assert touched["blur.kernel"] == moved.classes.tolist()


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(6, 1, 3, 3))


def test_a_bare_constant_as_a_filter_stays() -> None:
    kernel = torch.ones(6, 1, 3, 3, dtype=torch.float64)
    moved = Movement(lambda s, x: functional.conv2d(x, kernel, groups=6), SHAPE).check()
    assert moved.frozen.all()
    assert "filters channels that can't be cut in `model` (aten.convolution)" in moved.reasons


# Matrix products


@pytest.mark.parametrize("function", [
    lambda s, x: s.fc(x.mean((2, 3))), lambda s, x: s.fc(x.flatten(2).transpose(1, 2)),
    lambda s, x: s.fc(x.permute(0, 2, 3, 1)), lambda s, x: x.mean((2, 3)) @ s.fc.weight.t(),
    lambda s, x: torch.einsum("bchw,oc->bohw", x, s.fc.weight),
    lambda s, x: (s.fc.weight @ x.flatten(2)).view(2, 4, 5, 5),
    lambda s, x: torch.addmm(s.fc.bias, x.mean((2, 3)), s.fc.weight.t()),
    lambda s, x: torch.baddbmm(s.fc.bias.view(1, 1, 4), x.flatten(2).mT, s.fc.weight.t().expand(2, -1, -1)),
    lambda s, x: functional.linear(x.mean((2, 3)), s.fc.weight, s.fc.bias).relu(),
    lambda s, x: torch.tensordot(x, s.fc.weight, dims=([1], [1])),
], ids=["linear", "tokens", "channels last", "matmul", "einsum", "left", "addmm", "baddbmm", "functional", "tensordot"])
def test_a_product_with_a_weight_reads_and_makes(function: Callable[..., Tensor]) -> None:
    moved = Movement(function, SHAPE, fc=nn.Linear(6, 4))
    assert moved.free
    assert not moved.space.declared.unknown_ops
    touched = {(t.name, t.dim): moved.of[t.labels].tolist() for t in moved.space.declared.labeled_dims}
    assert touched["fc.weight", 1] == moved.classes.tolist()
    made = set(touched["fc.weight", 0])
    assert set(moved.outputs()[0].unique().tolist()) == made
    assert len(made) == 4
    if ("fc.bias", 0) in touched:
        assert touched["fc.bias", 0] == touched["fc.weight", 0]


def test_flattened_maps_touch_many_columns() -> None:
    model = nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196, 5))
    coupling = coupled(model, torch.randn(1, 3, 14, 14))
    group = made_by(coupling.groups, "0")
    reader = next(m for m in group.members if m.name == "3.weight")
    assert (reader.dim, reader.role, reader.indices.tolist()) == (1, "reads", torch.arange(196).view(4, 49).tolist())


def test_products_of_activations_lose_the_channels_that_both_have() -> None:
    assert Movement(lambda _, x: x.flatten(2).transpose(1, 2) @ x.flatten(2), SHAPE).free
    moved = Movement(lambda _, x: x.flatten(2).transpose(1, 2) @ x.flatten(2).sort(1)[0], SHAPE)
    assert moved.frozen.all()
    assert any(reason.startswith("multiplied out between two activations in `model` (aten.bmm)")
               for reason in moved.reasons)


def test_attention_over_space_leaves_values_free() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        weights = torch.ones(2, 25, 25, dtype=x.dtype).softmax(-1)
        return tokens @ weights

    assert Movement(function, SHAPE).check().free


def test_attention_between_tokens() -> None:
    moved = Movement(lambda s, x: s.attention(x.flatten(2).mT, x.flatten(2).mT, x.flatten(2).mT)[0], SHAPE,
                     attention=nn.MultiheadAttention(6, 2, batch_first=True))
    assert moved.free
    assert not moved.space.declared.unknown_ops


def test_few_heads_lose_equally_many_widths() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(2, 5, 2, 3).transpose(1, 2).reshape(4, 5, 3) for layer in (s.q, s.k, s.v))
        return s.out((torch.bmm(q, k.mT).softmax(-1) @ v).view(2, 2, 5, 3).transpose(1, 2).reshape(2, 5, 6))

    coupling = coupled(Calls(forward, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), out=nn.Linear(6, 2)),
                       torch.randn(2, 5, 4))
    assert classes(coupling, "q.weight", 0) == classes(coupling, "k.weight", 0)
    rows = {tuple(matrix.labels.ravel().tolist()): matrix.labels.shape for matrix in coupling.constraints}
    for name in ("q.weight", "v.weight"):
        assert rows[tuple(classes(coupling, name, 0))] == (2, 3)


def test_an_embedding_makes_its_columns_and_keeps_its_rows() -> None:
    coupling = coupled(Calls(lambda s, x: s.fc(s.words(x)), words=nn.Embedding(7, 6), fc=nn.Linear(6, 2)),
                       torch.randint(0, 7, (2, 5)))
    assert classes(coupling, "words.weight", 1) == classes(coupling, "fc.weight", 1)
    group = made_by(coupling.groups, "words")
    assert {(m.name, m.dim): m.role for m in group.members} == {
        ("words.weight", 1): "makes", ("fc.weight", 1): "reads"}
    rows = next(g for g in coupling.groups if any((m.name, m.dim) == ("words.weight", 0) for m in g.members))
    assert rows.frozen == "picked by position in `words` (aten.embedding)"


def roles(coupling: Coupling) -> dict[tuple[str, int], str]:
    return {(m.name, m.dim): m.role for group in coupling.groups for m in group.members}


@pytest.mark.parametrize("trained", [True, False])  # two operations of torch
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_a_bag_of_embeddings_makes_its_columns(mode: str, trained: bool) -> None:
    model = Calls(lambda s, x: s.fc(s.bag(x)), bag=nn.EmbeddingBag(7, 6, mode=mode), fc=nn.Linear(6, 2))
    coupling = coupled(model.requires_grad_(trained), torch.randint(0, 7, (2, 5)))
    assert roles(coupling)["bag.weight", 1] == "makes"
    assert classes(coupling, "bag.weight", 1) == classes(coupling, "fc.weight", 1)
    assert [group.frozen.split(" (")[0] for group in coupling.groups if group.members[0].dim == 0] == [
        "picked by position in `bag`", "the network's output"]


def test_a_bilinear_layer_reads_along_two_dimensions() -> None:
    model = Calls(lambda s, x: s.fc(s.both(s.a(x), s.b(x))), a=nn.Linear(3, 6), b=nn.Linear(3, 5),
                  both=nn.Bilinear(6, 5, 4), fc=nn.Linear(4, 2))
    x = torch.randn(7, 3)
    coupling = coupled(model, x)
    assert classes(coupling, "both.weight", 1) == classes(coupling, "a.weight", 0)
    assert classes(coupling, "both.weight", 2) == classes(coupling, "b.weight", 0)
    assert classes(coupling, "both.weight", 0) == classes(coupling, "both.bias", 0) == classes(coupling, "fc.weight", 1)
    assert [roles(coupling)["both.weight", dim] for dim in range(3)] == ["makes", "reads", "reads"]
    assert ts.profile(model, x).macs == 7 * (3 * 6 + 3 * 5 + 4 * 6 * 5 + 4 * 2)
    slim, plan = ts.prune(model, x, macs=0.5)
    assert (slim.both.in1_features, slim.both.in2_features, slim.both.out_features) == (
        slim.a.out_features, slim.b.out_features, slim.fc.in_features)
    assert plan.budgets[0].met == 7 * sum(layer.weight.numel() for layer in slim.children())


def test_a_convolution_of_channels_last() -> None:
    kernel = nn.Conv1d(6, 4, 3)  # holds the parameters
    model = Calls(lambda s, x: s.fc(torch.conv_tbc(s.a(x), s.k.weight.permute(2, 1, 0).contiguous(), s.k.bias)),
                  a=nn.Linear(3, 6), k=kernel, fc=nn.Linear(4, 2))
    coupling = coupled(model, torch.randn(9, 2, 3))
    assert classes(coupling, "k.weight", 1) == classes(coupling, "a.weight", 0)
    assert classes(coupling, "k.weight", 0) == classes(coupling, "k.bias", 0) == classes(coupling, "fc.weight", 1)
    assert [roles(coupling)["k.weight", dim] for dim in range(2)] == ["makes", "reads"]
    assert sum(c.amount for c in coupling.macs) == 2 * (9 * 3 * 6 + 7 * 3 * 6 * 4 + 7 * 4 * 2)
    assert ts.profile(model, torch.randn(9, 2, 3)).macs == 2 * (9 * 3 * 6 + 7 * 3 * 6 * 4 + 7 * 4 * 2)
    assert ts.prune(model, torch.randn(9, 2, 3), macs=0.5)[1].budgets[0].is_met


def test_bias_of_channels_that_stay() -> None:
    x = torch.randn(1, 3, 5, 5)
    coupling = coupled(Calls(lambda s, x: s.b(s.a(x)[:, :1].repeat(1, 4, 1, 1)), a=conv(3, 4), b=conv(4, 2)), x)
    assert all(group.frozen for group in coupling.groups if group.name == "a")


# Multiply-adds


@pytest.mark.parametrize("model", [
    nn.Conv2d(6, 4, 3, 2, 1), nn.Conv2d(6, 4, 3, dilation=2), nn.Conv2d(6, 4, (1, 3), groups=2),
    nn.Conv2d(6, 12, 3, groups=6), nn.ConvTranspose2d(6, 4, 2, 2), nn.ConvTranspose2d(6, 4, 3, 2, 1, 1),
    nn.ConvTranspose2d(6, 4, 3, groups=2), Calls(lambda s, x: s.fc(x.permute(0, 2, 3, 1)), fc=nn.Linear(6, 4)),
    Calls(lambda s, x: s.fc(x.mean((2, 3))), fc=nn.Linear(6, 4, bias=False)),
    Calls(lambda _, x: x.flatten(2) @ x.flatten(2).mT), Calls(lambda _, x: x @ x),
    Calls(lambda _, x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2])),
    Calls(lambda s, x: s.a(x.flatten(2).mT, x.flatten(2).mT, x.flatten(2).mT)[0],
          a=nn.MultiheadAttention(6, 2, batch_first=True)),
    Calls(lambda _, x: functional.scaled_dot_product_attention(x, x, x)),
    Calls(lambda s, x: s.c(x) + functional.conv2d(x, s.c.weight, padding=1), c=conv(6, 6)),
], ids=str)
def test_multiply_adds_are_those_of_torchs_own_counter(model: nn.Module) -> None:
    x = torch.randn(SHAPE)
    assert ts.profile(model, x).macs == counted_macs(model, x) > 0


@pytest.mark.parametrize(("layer", "weights", "positions"), [
    (nn.Conv2d(4, 8, 3, padding=1, bias=False), 288, 9), (nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), 144, 9),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), 36, 9), (nn.Conv2d(4, 8, 1, bias=False), 32, 9),
    (nn.ConvTranspose2d(4, 8, 2, 2, bias=False), 128, 9),
], ids=str)
def test_multiply_adds_in_closed_form(layer: nn.Module, weights: int, positions: int) -> None:
    profile = ts.profile(layer, torch.zeros(1, 4, 3, 3))
    assert (profile.params, profile.macs) == (weights, weights * positions)


# Operations of one's own


@torch.library.custom_op("torchslimtest::swap", mutates_args=())
def swap(x: Tensor, weight: Tensor) -> Tensor:
    return (x.flip(1) * weight.view(-1, 1, 1)).clone()


@swap.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


class Swap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return swap(x, self.weight)


def swap_labels(space: LabelSpace, op: Op) -> None:
    x, weight = op.args
    channels, own = space.along(x, 1, op), space.along(weight, 0, op)
    assert channels is not None
    assert own is not None
    space.union(channels[::-1], own)
    space.set(op.output, [channels[::-1].reshape(1, -1, 1, 1)])


@pytest.fixture
def rows() -> Iterator[None]:
    """Rules that a test registers are gone after it."""
    before = dict(rules.ROWS)
    yield
    rules.ROWS.clear()
    rules.ROWS.update(before)


def test_an_operation_without_a_rule_freezes_by_name() -> None:
    model = nn.Sequential(conv(3, 6), Swap(), conv(6, 2))
    x = torch.randn(2, 3, 5, 5)
    assert ts.profile(model, x).unknown == ("torchslimtest.swap",)
    group = made_by(ts.groups(model, x), "0")
    assert group.frozen == "no rule for the operation in `1` (torchslimtest.swap)"
    plan = ts.plan(model, x, macs=0.5, strict=False)
    assert plan.kept == {}
    assert "no rule for torchslimtest.swap: what it reads stays" in plan.notes
    assert ("0", "no rule for the operation in `1` (torchslimtest.swap)") in {
        (entry.name, entry.reason) for entry in plan.left_alone}


@pytest.mark.usefixtures("rows")
def test_a_rule_of_ones_own_teaches_it() -> None:
    model = nn.Sequential(conv(3, 6), Swap(), conv(6, 2)).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(6) + 0.5)
    plain = ts.profile(model, x).macs
    register_rule("torchslimtest::swap", cost=lambda op: op.output.numel, labels=swap_labels)
    profile = ts.profile(model, x)
    assert profile.unknown == ()
    assert profile.macs == plain + 2 * 6 * 25
    assert {layer.name: layer.macs for layer in profile.layers}["1"] == 300
    slim, plan = ts.prune(model, x, channels=0.6, importance=lambda group: torch.arange(group.channels))
    assert ts.verify(model, slim, plan, x) < 1e-12
    assert tuple(5 - i for i in reversed(plan.kept["0.weight"][0])) == plan.kept["2.weight"][1]
    assert plan.kept["1.weight"][0] == plan.kept["2.weight"][1]


@pytest.mark.usefixtures("rows")
def test_a_rule_with_a_cost_alone_freezes_what_is_read() -> None:
    register_rule("torchslimtest::swap", cost=lambda op: 7)
    model, x = nn.Sequential(conv(3, 6), Swap(), conv(6, 2)), torch.randn(2, 3, 5, 5)
    assert ts.profile(model, x).unknown == ()
    group = made_by(ts.groups(model, x), "0")
    assert group.frozen == "read as a whole in `1` (torchslimtest.swap)"


@pytest.mark.usefixtures("rows")
def test_a_rule_may_replace_one_that_is_there() -> None:
    register_rule("aten::relu")
    model, x = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 2)), torch.randn(2, 3, 5, 5)
    assert made_by(ts.groups(model, x), "0").frozen == "read as a whole in `1` (aten.relu)"


@pytest.mark.parametrize("name", ["swap", "my.swap", "::swap", "my::", ""])
def test_a_name_without_a_namespace_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=r"is no operation's name; wanted namespace::name, such as my::op"):
        register_rule(name)


def test_rules_leave_weights_without_a_name_readable() -> None:
    """A constant kernel, grouped."""
    kernel = torch.ones(6, 2, 3, 3, dtype=torch.float64)
    moved = Movement(lambda _, x: functional.conv2d(x, kernel, groups=3), SHAPE).check()
    assert moved.frozen.all()


def test_pointwise_operations_of_torch_need_no_row() -> None:
    assert "aten.erfinv" not in rules.ROWS
    assert Movement(lambda _, x: x.tanh().erfinv(), SHAPE).check().free


# Deformable convolutions


class Deformed(nn.Module):
    """Samples where a convolution of the same features says, weighs the samples, and reads the result."""

    def __init__(self, groups: int, offset_groups: int, masked: bool, out: int = 12) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 12), conv(out, 2)
        self.offsets = conv(12, 2 * 9 * offset_groups)
        self.mask = conv(12, 9 * offset_groups) if masked else None
        self.deformed = DeformConv2d(12, out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        mask = None if self.mask is None else self.mask(x).sigmoid()
        return self.head(self.deformed(x, self.offsets(x), mask).relu())


@pytest.mark.parametrize(("groups", "offset_groups", "masked", "out"), [
    (1, 1, False, 12), (1, 1, True, 10), (3, 1, False, 12), (1, 3, True, 12), (3, 2, True, 12), (12, 1, True, 12),
    (12, 3, False, 24)])
def test_a_deformable_convolution(groups: int, offset_groups: int, masked: bool, out: int) -> None:
    model = random_statistics(Deformed(groups, offset_groups, masked, out)).double()
    with torch.no_grad():  # no layer that random_statistics knows
        model.deformed.weight.normal_()
    x = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    assert ts.profile(model, x).unknown == ()
    groups_of = ts.groups(model, x)
    assert made_by(groups_of, "offsets").frozen == "coordinates in `deformed` (torchvision.deform_conv2d)"
    assert not made_by(groups_of, "stem").frozen
    if groups < 12:  # it makes channels, and does not pass them on
        assert made_by(groups_of, "deformed").makers == ("deformed",)
    plan = ts.plan(model, x, scope={"*": 0.5}, importance="random")
    slim = ts.apply(model, plan)
    assert (slim.stem.out_channels, slim.deformed.in_channels, slim.deformed.out_channels) == (6, 6, out // 2)
    assert slim.deformed.groups == (6 if groups == 12 else groups)
    assert ts.verify(model, slim, plan, x) < 1e-12
    assert plan.predicted["macs"] == ts.profile(slim, x).macs
    before = {layer.name: layer.macs for layer in ts.profile(model, x).layers}
    assert before["deformed"] == 49 * out * 9 * 12 // groups
    for run in range(offset_groups):  # each keeps its share
        own = range(12 // offset_groups * run, 12 // offset_groups * (run + 1))
        assert sum(channel in own for channel in plan.kept["stem.weight"][0]) == 6 // offset_groups
