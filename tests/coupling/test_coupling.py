"""Which channels live or die together, in networks small enough to say by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import torchslim as ts
from helpers import Calls, Untouched, conv
from torchslim.coupling.coupling import Coupling, connected_components, couple, trace_modes
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import TraceError
from torchslim.tracing.trace import trace

X = torch.randn(2, 3, 8, 8)


def by_maker(model: nn.Module, x: Any = X) -> dict[str, ChannelGroup]:
    """The groups that can be told by the layer that makes them; the first of several."""
    found: dict[str, ChannelGroup] = {}
    for group in ts.groups(model, x):
        for maker in group.makers:
            found.setdefault(maker, group)
    return found


def touched(group: ChannelGroup) -> dict[tuple[str, int], str]:
    return {(m.name, m.dim): m.role for m in group.members}


def free(model: nn.Module, x: Any = X) -> list[ChannelGroup]:
    return [group for group in ts.groups(model, x) if not group.frozen]


def test_a_chain() -> None:
    model = nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 5), nn.PReLU(5), conv(5, 2))
    groups = by_maker(model)
    assert touched(groups["0"]) == {
        ("0.weight", 0): "makes", ("1.weight", 0): "follows", ("1.bias", 0): "follows",
        ("1.running_mean", 0): "follows", ("1.running_var", 0): "follows", ("3.weight", 1): "reads"}
    assert touched(groups["3"]) == {("3.weight", 0): "makes", ("3.bias", 0): "follows", ("4.weight", 0): "follows",
                                    ("5.weight", 1): "reads"}
    assert [m.name for m in groups["0"].members if m.scale] == ["1.weight"]
    assert [(g.name, g.channels, g.makers, g.shortcut, g.frozen) for g in free(model)] == [
        ("0", 4, ("0",), False, ""), ("3", 5, ("3",), False, "")]
    for group in groups.values():
        for member in group.members:
            assert member.indices.tolist() == [[i] for i in range(group.channels)]
            assert member.layer == member.name.rpartition(".")[0]


def test_a_group_says_what_it_is() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    groups = ts.groups(model, X)
    assert [str(group) for group in groups] == [
        "0: 3 channels, frozen: reads the network's input in `0` (aten.convolution)\n"
        "    reads   0.weight [dim 1]",
        "0: 4 channels, free\n    makes   0.weight [dim 0]\n    follows 0.bias [dim 0]\n    reads   2.weight [dim 1]",
        "2: 2 channels, frozen: the network's output\n    makes   2.weight [dim 0]\n    follows 2.bias [dim 0]"]
    head = "3 channel groups, 9 channels; can be cut: 4 channels in 1 of them"
    assert str(groups) == repr(groups) == "\n".join([head, *map(str, groups)])
    assert repr(groups[1]) == "<ChannelGroup 0: 4 channels, free>"
    assert isinstance(groups, tuple)


def test_groups_print_at_a_glance() -> None:
    """A line for each role, as wide as a terminal; a layer's tensors together."""
    model = torchvision.models.resnet18()
    groups = ts.groups(model, torch.randn(1, 3, 64, 64))
    text = str(groups)
    assert max(map(len, (line for line in text.splitlines() if "frozen" not in line))) <= 116
    assert "\n".join([
        "conv1: 64 channels, on a shortcut",
        "    makes   conv1.weight [dim 0], layer1.0.conv2.weight [dim 0], layer1.1.conv2.weight [dim 0]",
        "    follows bn1.weight, .bias, .running_mean, .running_var [dim 0], and 2 more",
        "    reads   layer1.0.conv1.weight [dim 1], layer1.1.conv1.weight [dim 1], and 2 more",
        "layer1.0.conv1: 64 channels, free"]) in text
    assert len(text.splitlines()) == 1 + sum(1 + len({m.role for m in group.members}) for group in groups)
    whole = str(groups[1]).splitlines()
    assert len(whole) == 1 + len({(m.layer, m.role) for m in groups[1].members})
    assert "    reads   layer2.0.downsample.0.weight [dim 1]" in whole


def test_a_residual_sum_ties_its_branches() -> None:
    model = Calls(lambda s, x: s.head(s.body(s.stem(x)) + s.stem(x).relu()), stem=conv(3, 4),
                  body=nn.Sequential(conv(4, 6), nn.ReLU(), conv(6, 4)), head=conv(4, 2))
    groups = by_maker(model)
    assert groups["stem"] is groups["body.2"]
    assert groups["stem"].makers == ("stem", "body.2")
    assert groups["stem"].shortcut
    assert str(groups["stem"]).startswith("stem: 4 channels, on a shortcut")
    assert not groups["body.0"].shortcut


def test_a_concatenation_keeps_its_parts_apart() -> None:
    model = Calls(lambda s, x: s.head(torch.cat([s.a(x), s.b(x)], 1)), a=conv(3, 4), b=conv(3, 6), head=conv(10, 2))
    groups = by_maker(model)
    assert groups["a"] is not groups["b"]
    assert groups["a"].shortcut
    assert groups["b"].shortcut
    readers = {name: next(m for m in groups[name].members if m.role == "reads") for name in "ab"}
    assert readers["a"].indices.ravel().tolist() == list(range(4))
    assert readers["b"].indices.ravel().tolist() == list(range(4, 10))


def test_several_readers_are_a_shortcut() -> None:
    groups = by_maker(Calls(lambda s, x: (s.b(s.a(x)), s.c(s.a(x))), a=conv(3, 4), b=conv(4, 2), c=conv(4, 2)))
    assert groups["a"].shortcut


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear layers"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_gate_of_squeeze_and_excitation_is_no_shortcut(linear: bool, batch: int) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        squeezed = y.mean((2, 3)) if linear else y.mean((2, 3), keepdim=True)
        gate = s.up(s.down(squeezed).relu()).sigmoid()
        return s.b(y * (gate[:, :, None, None] if linear else gate))

    layers = (nn.Linear(4, 2), nn.Linear(2, 4)) if linear else (nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1))
    model = Calls(forward, a=conv(3, 4), down=layers[0], up=layers[1], b=conv(4, 2))
    groups = by_maker(model, torch.randn(batch, 3, 8, 8))
    assert groups["a"].makers == ("a",)
    assert not groups["a"].shortcut
    assert touched(groups["a"]) == {
        ("a.weight", 0): "makes", ("a.bias", 0): "follows", ("down.weight", 1): "reads", ("up.weight", 0): "gates",
        ("up.bias", 0): "follows", ("b.weight", 1): "reads"}
    assert groups["down"].channels == 2


def test_linear_layers_on_positions_make_their_channels() -> None:
    """The same two layers, on every position of a map, are no gate."""
    model = Calls(lambda s, x: s.b(s.a(x) + s.up(s.down(s.a(x).permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)),
                  a=conv(3, 4), down=nn.Linear(4, 6), up=nn.Linear(6, 4), b=conv(4, 2))
    assert by_maker(model)["a"].makers == ("a", "up")


def test_a_depthwise_filter_follows() -> None:
    groups = by_maker(nn.Sequential(conv(3, 4), conv(4, 4, groups=4), conv(4, 2)))
    assert set(groups) == {"0", "2"}
    assert touched(groups["0"])["1.weight", 0] == "follows"


def test_grouped_convolutions_lose_equally_many_a_group() -> None:
    coupling = couple(trace_modes(nn.Sequential(conv(3, 8), conv(8, 12, groups=4), conv(12, 2)), X))
    members = {(m.name, m.dim): m for group in coupling.groups for m in group.members}
    assert members["1.weight", 1].groups == 4
    assert members["1.weight", 1].indices.ravel().tolist() == list(range(8))
    assert sorted((rows.labels.shape, rows.min_kept) for rows in coupling.constraints) == [((4, 2), 1), ((4, 3), 1)]


def test_rows_of_one_set_of_channels_in_two_shapes_are_two_constraints() -> None:
    """Four groups of three filters, shuffled in two rows of six: both must hold."""
    model = nn.Sequential(conv(3, 12), conv(12, 12, groups=4), nn.ChannelShuffle(2), conv(12, 2))
    coupling = couple(trace_modes(model, X))
    made = coupling.by_dimension["1.weight", 0].labels.tolist()
    assert {rows.labels.shape for rows in coupling.constraints if sorted(rows.labels.ravel().tolist()) == made} == {
        (4, 3), (2, 6)}


def test_the_halves_of_a_chunk_are_groups_of_their_own() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        left, right = s.a(x).chunk(2, 1)
        return s.c(torch.cat([left, s.b(right)], 1))

    model = Calls(forward, a=conv(3, 8), b=conv(4, 4), c=conv(8, 2))
    groups = [group for group in ts.groups(model, X) if "a" in group.makers]
    assert [group.channels for group in groups] == [4, 4]
    assert [touched(group).get(("b.weight", 1)) for group in groups] == [None, "reads"]
    [rows] = couple(trace_modes(model, X)).constraints
    assert (rows.labels.shape, rows.min_kept) == ((2, 4), 2)


def test_a_channel_shuffle_moves_places_and_nothing_else() -> None:
    model = nn.Sequential(conv(3, 6), nn.ChannelShuffle(2), conv(6, 2))
    [group] = free(model)
    places = {(m.name, m.dim): m.indices.ravel().tolist() for m in group.members}
    assert places["0.weight", 0] == [0, 1, 2, 3, 4, 5]
    assert places["2.weight", 1] == [0, 2, 4, 1, 3, 5]


def test_flattened_maps_touch_49_columns_a_channel() -> None:
    model = nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196, 6), nn.ReLU(),
                          nn.Linear(6, 2))
    groups = by_maker(model)
    columns = next(m for m in groups["0"].members if m.name == "3.weight")
    assert columns.indices.shape == (4, 49)
    assert columns.indices.tolist() == torch.arange(196).view(4, 49).tolist()
    assert touched(groups["3"]) == {("3.weight", 0): "makes", ("3.bias", 0): "follows", ("5.weight", 1): "reads"}


def test_flattened_channels_last() -> None:
    model = Calls(lambda s, x: s.fc(s.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 4), fc=nn.Linear(256, 2))
    columns = next(m for m in by_maker(model)["a"].members if m.name == "fc.weight")
    assert columns.indices.tolist() == torch.arange(256).view(64, 4).T.tolist()


def test_a_layer_that_is_called_twice_reads_what_it_makes() -> None:
    model = Calls(lambda s, x: s.c(s.b(s.b(s.a(x)))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))
    groups = by_maker(model)
    assert groups["a"] is groups["b"]
    assert touched(groups["b"])["b.weight", 0] == "makes"
    assert touched(groups["b"])["b.weight", 1] == "reads"


def test_a_layer_of_two_readings_ties_them() -> None:
    model = Calls(lambda s, x: s.c(s.a(x)) + s.c(s.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    groups = by_maker(model)
    assert groups["a"] is groups["b"]


def test_tied_weights_go_by_one_name() -> None:
    model = nn.Sequential(conv(3, 4), conv(4, 4), nn.ReLU(), conv(4, 4), conv(4, 2))
    model[3].weight = model[1].weight
    groups = by_maker(model)
    assert groups["0"] is groups["1"]
    names = {m.name for m in groups["0"].members}
    assert "1.weight" in names
    assert "3.weight" not in names
    assert {"1.bias", "3.bias"} <= names


@pytest.mark.parametrize(("layers", "x"), [
    ((nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3)), torch.randn(2, 3, 9)),
    ((nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1)), torch.randn(2, 3, 2, 4, 4)),
    ((nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2)), X),
    ((nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), torch.randn(5, 3)),
], ids=["1d", "3d", "transposed", "linear"])
def test_other_layers(layers: tuple[nn.Module, ...], x: Tensor) -> None:
    made, read = (1, 0) if isinstance(layers[0], nn.ConvTranspose2d) else (0, 1)
    [group] = free(nn.Sequential(*layers), x)
    assert touched(group)["0.weight", made] == "makes"
    assert touched(group)["2.weight", read] == "reads"
    assert touched(group)["1.running_var", 0] == "follows"


def test_padding_a_shortcut_leaves_the_middle_free() -> None:
    model = Calls(lambda s, x: s.c(s.b(s.a(x)) + functional.pad(s.a(x), (0, 0, 0, 0, 1, 2))), a=conv(3, 4),
                  b=conv(4, 7), c=conv(7, 2))
    groups = [group for group in ts.groups(model, X) if "b" in group.makers]
    assert [(group.channels, bool(group.frozen)) for group in groups] == [(4, False), (3, True)]
    [stays] = {group.frozen for group in groups if group.frozen}
    assert stays == "padded channels in `model` (aten.constant_pad_nd)"


def test_buffers_and_plain_attributes_follow() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4, 1, 1))
            self.scale = torch.ones(1, 4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.mean) * self.scale

    groups = by_maker(nn.Sequential(conv(3, 4), Held(), conv(4, 2)))
    assert touched(groups["0"])["1.mean", 0] == touched(groups["0"])["1.scale", 1] == "follows"


def test_a_constant_that_nobody_holds_freezes() -> None:
    constant = torch.arange(4.0).view(4, 1, 1)
    groups = by_maker(Calls(lambda s, x: s.b(s.a(x) + constant), a=conv(3, 4), b=conv(4, 2)))
    assert groups["a"].frozen == "meets a tensor that can't be cut in `model` (aten.add)"


def test_copies_of_a_channel_in_unequal_rows_freeze() -> None:
    """Each channel is filtered three ways, and the twelve results are shuffled in three rows of four."""
    model = nn.Sequential(conv(3, 4), conv(4, 12, groups=4), nn.ChannelShuffle(3), conv(12, 2))
    assert by_maker(model)["0"].frozen == "copies of a channel lie in unequal rows"
    even = nn.Sequential(conv(3, 4), conv(4, 12, groups=4), nn.ChannelShuffle(4), conv(12, 2))
    assert not by_maker(even)["0"].frozen


def test_channels_that_are_treated_differently_are_told_apart() -> None:
    """Both halves touch the same weights; one of them is pooled."""
    def forward(s: Any, x: Tensor) -> Tensor:
        left, right = s.a(x).chunk(2, 1)
        return s.b(torch.cat([functional.max_pool2d(left, 3, 1, 1), right], 1))

    coupling = couple(trace_modes(Calls(forward, a=conv(3, 8), b=conv(8, 2)), X))
    signatures = coupling.signatures[coupling.by_dimension["a.weight", 0].labels].tolist()
    assert len(set(signatures[:4])) == len(set(signatures[4:])) == 1
    assert signatures[0] != signatures[4]


# Approximation


def test_norms_that_mix_freeze_unless_allowed() -> None:
    model = nn.Sequential(conv(3, 4), nn.GroupNorm(1, 4), conv(4, 2))
    assert by_maker(model)["0"].frozen == "channels are mixed by `1` (aten.native_group_norm)"
    [group] = [g for g in ts.groups(model, X, allow_approximate=True) if "0" in g.makers]
    assert not group.frozen
    assert touched(group)["1.weight", 0] == "follows"


# Two tapes


class Auxiliary(nn.Module):
    """A head that only training runs."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.stem, self.head, self.aux, self.fails = conv(3, 4), conv(4, 2), conv(4, 2), fails

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        if not self.training:
            return self.head(y)
        if self.fails:
            raise ValueError("targets wanted")
        return self.head(y), self.aux(y)


def test_heads_that_only_training_runs_are_coupled() -> None:
    model = Auxiliary()
    before = Untouched(model)
    groups = by_maker(model, X[:1])
    before.check()
    assert touched(groups["stem"])["aux.weight", 1] == "reads"
    assert groups["aux"].frozen == "the network's output"
    assert [graph.training for graph in trace_modes(model, X)] == [False, True]


def test_one_tape_is_enough_where_it_reads_everything() -> None:
    assert len(trace_modes(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 2)), X)) == 1


def test_a_head_that_no_run_reaches() -> None:
    assert len(trace_modes(Auxiliary(fails=True), X)) == 1
    assert ("aux.weight", 1) not in touched(by_maker(Auxiliary(fails=True))["stem"])


def test_multiply_adds_are_those_of_the_first_tape() -> None:
    coupling = couple(trace_modes(Auxiliary(), X))
    assert sum(scaling.amount for scaling in coupling.macs) == ts.profile(Auxiliary(), X).macs


# The whole


def test_costs_are_those_of_the_profile() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=5)
    x = torch.randn(1, 3, 64, 64)
    coupling, profile = couple(trace_modes(model, x)), ts.profile(model, x)
    assert sum(s.amount for s in coupling.macs) == profile.macs
    assert sum(s.amount for s in coupling.params) == profile.params


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121", "googlenet"])
def test_every_channel_of_every_layer_is_in_one_group(name: str) -> None:
    model = ts.create_model(f"torchvision:{name}", num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    before = Untouched(model)
    groups = ts.groups(model, x)
    before.check()
    seen: dict[tuple[str, int], list[int]] = {}
    for group in groups:
        for member in group.members:
            seen.setdefault((member.name, member.dim), []).extend(member.indices.ravel().tolist())
    state = dict(model.named_parameters())
    depthwise = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    for key, places in seen.items():
        assert sorted(places) == list(range(len(places))), key
    for parameter, tensor in state.items():
        for dim in range(min(tensor.dim(), 2)):
            if not (parameter in depthwise and dim == 1):
                assert len(seen[parameter, dim]) == tensor.shape[dim]
    assert {group.frozen for group in groups if group.frozen} == {
        "the network's output", next(g.frozen for g in groups if g.frozen.startswith("reads the network's input in "))}


def test_groups_are_the_same_every_time() -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    x = torch.randn(1, 3, 32, 32)
    assert [str(g) for g in ts.groups(model, x)] == [str(g) for g in ts.groups(model, x)]


def test_a_model_without_channels() -> None:
    assert ts.groups(Calls(lambda _, x: x * 2), X) == ()
    coupling: Coupling = couple([trace(Calls(lambda _, x: x * 2), X)])
    assert coupling.num_classes == 0


def test_a_model_that_fails_is_a_trace_error() -> None:
    with pytest.raises(TraceError, match="`0` failed"):
        ts.groups(nn.Sequential(conv(4, 4)), X)


def test_classes_are_connected_components() -> None:
    """Against the plain algorithm, on random pairs."""
    numbers = torch.Generator().manual_seed(0)
    for count, pairs in ((1, 0), (5, 3), (40, 30), (300, 280)):
        a, b = (torch.randint(0, count, (pairs,), generator=numbers).numpy() for _ in range(2))
        parent = list(range(count))

        def root(i: int, parent: list[int] = parent) -> int:
            while parent[i] != i:
                i = parent[i]
            return i

        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            parent[max(root(i), root(j))] = min(root(i), root(j))
        expected = [root(i) for i in range(count)]
        found = connected_components(count, [(a[:7], b[:7]), (a[7:], b[7:])]).tolist()
        assert [found.index(one) for one in found] == expected
        assert sorted(set(found)) == list(range(len(set(found))))
