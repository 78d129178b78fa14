"""Sensitivity: what is measured against silencing by hand, what is cut together, the shares that follow."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import counted_macs, random_statistics
from torchslim.errors import CheckpointError, RequestError
from torchslim.planning.sensitivity import GroupSensitivity, Sensitivity


class Residual(nn.Module):
    """Two groups: what the stem and the block's end make together, and the block's inner channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 10, 3, padding=1)
        self.end = nn.Conv2d(10, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.end(self.inner(x).relu())
        return self.head(x.relu().mean((2, 3)))


class Halves(nn.Module):
    """One layer makes two groups, of which each half goes its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(3, 12, 1)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).relu().chunk(2, 1)
        return (self.left(left) * self.right(right)).mean((2, 3))


def position(group: object) -> list[int]:
    """Channels matter by their place: the last ones go last."""
    return list(range(group.channels))  # type: ignore[attr-defined]


def pictures(count: int = 60, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 3, size, size, generator=generator)
    y = torch.randint(0, 4, (count,), generator=generator)
    return [(x[:count // 2], y[:count // 2]), (x[count // 2:], y[count // 2:])]


def residual() -> Residual:
    """Its answers are of all four classes, so that what is cut shows."""
    model = random_statistics(Residual()).eval()
    assert isinstance(model, Residual)
    with torch.no_grad():
        scores = torch.cat([model(x) for x, _ in pictures()])
        model.head.bias -= scores.mean(0)
    return model


def silenced(model: Residual, group: str, kept: int) -> nn.Module:
    """By hand: the weights that read the first channels are set to zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        if group == "inner":
            model.end.weight[:, :10 - kept] = 0
        else:
            model.inner.weight[:, :8 - kept] = 0
            model.head.weight[:, :8 - kept] = 0
    return model


def right(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


# --- what is measured -------------------------------------------------------------------------------------------------

def test_each_value_is_that_of_the_network_with_these_channels_silenced_by_hand() -> None:
    model, batches = residual(), pictures()
    found = ts.sensitivity(model, batches[0][0][:1], batches, ratios=(0.3, 1, 0.75), importance=position)
    assert found.measure == "accuracy"
    assert found.base == right(model, batches)
    assert found.items == 60
    assert found.ratios == (1.0, 0.75, 0.3)
    assert [(group.name, group.layers, group.channels, group.kept) for group in found.groups] == [
        ("stem", ("stem", "end"), 8, (8, 6, 3)), ("inner", ("inner",), 10, (10, 8, 3))]
    for group in found.groups:
        assert group.values == tuple(right(silenced(model, group.name, kept), batches) for kept in group.kept)
    assert len({value for group in found.groups for value in group.values}) > 2  # or nothing would be told apart
    assert [entry.name for entry in found.left_alone] == ["stem", "head"]


def test_macs_are_those_of_the_cut_network() -> None:
    model, batches = residual(), pictures()
    x = batches[0][0][:1]
    found = ts.sensitivity(model, x, batches, ratios=(0.5,), importance=position)
    for group in found.groups:
        slim, _ = ts.prune(model, x, scope=dict.fromkeys(group.layers, 0.5), importance=position)
        assert group.macs[0] == pytest.approx(counted_macs(slim, x) / counted_macs(model, x), abs=1e-6)


def test_agreement_is_with_the_whole_networks_answers_and_needs_no_labels() -> None:
    model, batches = residual(), pictures()
    own = [(x, model(x).argmax(1)) for x, _ in batches]
    options = {"ratios": (0.5,), "importance": position}
    unlabelled = ts.sensitivity(model, batches[0][0][:1], [x for x, _ in batches], **options)
    assert (unlabelled.measure, unlabelled.base) == ("agreement", 1.0)
    assert [group.values for group in unlabelled.groups] == [
        group.values for group in ts.sensitivity(model, batches[0][0][:1], own, **options).groups]
    # labels may be there, and have no part in it
    assert ts.sensitivity(model, batches[0][0][:1], batches, measure="agreement", **options) == unlabelled


def test_the_error_is_relative_and_of_all_outputs() -> None:
    class TwoMaps(Residual):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            first = self.stem(x).relu()
            return first.sum(1), (first + self.end(self.inner(first).relu())).mean(1)

    model = random_statistics(TwoMaps()).eval()
    x = pictures()[0][0]
    found = ts.sensitivity(model, x[:1], [x[:20], x[20:]], ratios=(0.5,), importance=position, only=["inner"])
    assert (found.measure, found.base) == ("error", 0.0)
    cut = copy.deepcopy(model)
    with torch.no_grad():
        cut.end.weight[:, :5] = 0
        old, new = (torch.cat([part.flatten() for part in net(x)]) for net in (model, cut))
    assert found.groups[0].values[0] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)
    assert found.loss(0.2) == 0.2


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = residual().train()
    model.stem.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ts.sensitivity(model, torch.randn(1, 3, 8, 8, generator=torch.Generator()), pictures(), ratios=(0.5,))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model.training, model.stem.training, model.inner.training) == (True, False, True)
    assert torch.equal(state, torch.get_rng_state())


def test_datasets_and_labels_of_maps() -> None:
    batches = pictures()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    model = residual()
    dataset = torch.utils.data.TensorDataset(x, y)
    parted = ts.train.Data("parted", torch.utils.data.TensorDataset(-x, y), dataset, tuple("abcd"), (3, 8, 8))
    for importance in ("l1", "activation", "taylor"):  # pictures for the criterion are taken from what is given, too
        options = {"ratios": (0.5,), "importance": importance, "loss": nn.functional.cross_entropy}
        whole = ts.sensitivity(model, x[:1], dataset, **options)
        assert whole.items == 60
        assert ts.sensitivity(model, x[:1], parted, **options) == whole
        if importance == "l1":
            assert whole.groups == ts.sensitivity(model, x[:1], batches, **options).groups
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    labels = torch.randint(0, 4, (10, 8, 8))
    maps = ts.sensitivity(net, x[:1], [(x[:10], labels)], ratios=(0.5,))
    assert (maps.measure, maps.items) == ("accuracy", 640)
    assert maps.base == pytest.approx(float((net(x[:10]).argmax(1) == labels).float().mean()))


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_criteria_that_ask_for_labels_rank_by_their_own_data(importance: str) -> None:
    model, batches = residual(), pictures()
    loss = nn.functional.cross_entropy
    found = ts.sensitivity(model, batches[0][0][:1], batches, ratios=(0.5,), importance=importance, loss=loss)
    for group in found.groups:
        plan = ts.plan(model, batches[0][0][:1], scope=dict.fromkeys(group.layers, 0.5), only=group.layers,
                       importance=importance, data=batches, loss=loss)
        assert group.values == (right(ts.apply(model, plan), batches),)
    apart = ts.sensitivity(model, batches[0][0][:1], [x for x, _ in batches], ratios=(0.5,), importance=importance,
                           loss=loss, scoring=batches, measure="agreement")
    assert [group.kept for group in apart.groups] == [group.kept for group in found.groups]
    with pytest.raises(RequestError, match=rf"importance '{importance}' asks for data=.* and loss="):
        ts.sensitivity(model, batches[0][0][:1], batches, importance=importance)


def test_criteria_that_look_at_pictures_need_no_labels() -> None:
    model, batches = residual(), pictures()
    x = batches[0][0][:1]
    found = ts.sensitivity(model, x, batches, ratios=(0.5,), importance="activation", loss=nn.functional.cross_entropy)
    bare = ts.sensitivity(model, x, [x for x, _ in batches], ratios=(0.5,), importance="activation", scoring=batches)
    assert (found.importance, found.measure, bare.measure) == ("activation", "accuracy", "agreement")
    for group in found.groups:
        plan = ts.plan(model, x, scope=dict.fromkeys(group.layers, 0.5), only=group.layers, importance="activation",
                       data=[x for x, _ in batches])
        assert group.values == (right(ts.apply(model, plan), batches),)


def test_options_and_instances_of_criteria() -> None:
    model, batches = residual(), pictures()
    x = batches[0][0][:1]
    named = ts.sensitivity(model, x, batches, ratios=(0.5,), importance="l1:filters")
    assert named.importance == "l1:filters"
    assert ts.sensitivity(model, x, batches, ratios=(0.5,), importance=ts.importance.L1(over="filters")) == named


# --- what is cut together ---------------------------------------------------------------------------------------------

def test_groups_that_one_layer_makes_are_taken_together() -> None:
    found = ts.sensitivity(random_statistics(Halves()), torch.randn(1, 3, 4, 4), [torch.randn(30, 3, 4, 4)],
                           ratios=(0.5,))
    assert [(group.name, group.layers, group.channels, group.kept) for group in found.groups] == [
        ("both", ("both",), 12, (6,))]


def test_rows_that_lose_equally_many_are_taken_together() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 1, groups=2), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    found = ts.sensitivity(random_statistics(net), torch.randn(1, 3, 4, 4), pictures(size=4), ratios=(0.5, 0.05))
    assert [(group.name, group.channels, group.kept) for group in found.groups] == [
        ("0", 8, (4, 2)), ("2", 12, (6, 2))]


@pytest.mark.parametrize("name", ["torchslim:shufflenet_v2_cifar?width=0.5", "torchslim:mobilenet_v2_cifar"])
def test_networks_with_many_ties(name: str) -> None:
    net = random_statistics(ts.create_model(name.partition("?")[0], num_classes=10,
                                            **({"width": 0.5} if "?" in name else {}))).eval()
    x = torch.randn(4, 3, 16, 16)
    found = ts.sensitivity(net, x[:1], [x], ratios=(0.5,), exclude=["features.[2-9]*", "features.1?.*"])
    assert found.groups
    shares = found.shares(1.0)
    assert set(shares.values()) == {0.5}
    plan = ts.plan(net, x[:1], scope=shares)
    for group in found.groups:
        assert [len(plan.kept[f"{layer}.weight"][0]) <= 0.5 * net.get_submodule(layer).out_channels + 2
                for layer in group.layers] == [True] * len(group.layers)


def test_few_channels_are_measured_once_for_each_width_that_they_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    from torchslim.planning.sensitivity import scan

    runs: list[nn.Module] = []
    monkeypatch.setattr(scan, "apply", lambda model, plan: runs.append(model) or ts.apply(model, plan))
    found = ts.sensitivity(net, torch.randn(1, 3, 4, 4), pictures(size=4), ratios=(0.9, 0.8, 0.7, 0.5, 0.4, 0.1))
    assert found.groups[0].kept == (4, 4, 3, 2, 2, 2)
    assert found.groups[0].values[0] == found.base
    assert len(runs) == 2


def test_a_group_that_loses_none_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    found = ts.sensitivity(net, torch.randn(1, 3, 4, 4), pictures(size=4), ratios=(0.5,))
    assert [group.name for group in found.groups] == ["1"]
    assert ("0", 2, "loses none, not even where 0.5 of them would do") in [
        (entry.name, entry.channels, entry.reason) for entry in found.left_alone]


# --- the shares that follow -------------------------------------------------------------------------------------------

FOUND = Sensitivity("accuracy", 0.99, 100, (0.9, 0.5, 0.1), "l2", (
    GroupSensitivity("a", ("a", "b"), 10, (9, 5, 1), (0.9, 0.5, 0.1), (0.98, 0.97, 0.99)),
    GroupSensitivity("c[0]", ("c[0]",), 10, (9, 5, 1), (0.9, 0.5, 0.1), (1.0, 0.985, 0.2))))


def test_shares_stop_where_the_first_width_loses_more() -> None:
    assert FOUND.shares(0) == {"a": 1.0, "b": 1.0, "c[[]0]": 0.9}
    assert FOUND.shares() == {"a": 0.9, "b": 0.9, "c[[]0]": 0.5}  # 0.99 - 0.98 is a little above 0.01
    assert FOUND.shares(0.02) == {"a": 0.1, "b": 0.1, "c[[]0]": 0.5}
    assert FOUND.shares(1) == {"a": 0.1, "b": 0.1, "c[[]0]": 0.1}
    error = replace(FOUND, measure="error", base=0.0)
    assert set(error.shares(0.5).values()) == {1.0}
    for drop in (-0.1, float("nan"), True, "1"):
        with pytest.raises(RequestError, match=r"^shares: drop=.* found, a number from 0 wanted"):
            FOUND.shares(drop)


def test_shares_are_a_scope_in_which_each_group_keeps_what_was_measured() -> None:
    model, batches = residual(), pictures()
    x = batches[0][0][:1]
    found = ts.sensitivity(model, x, batches, importance=position)
    for drop in (0.0, 0.05, 0.2, 1.0):
        plan = ts.plan(model, x, scope=found.shares(drop), importance=position)
        for group in found.groups:
            share = found.least(group, drop)
            kept = group.channels if share == 1 else group.kept[found.ratios.index(share)]
            stays = plan.kept.get(f"{group.name}.weight", {}).get(0, range(group.channels))
            assert len(stays) == kept


def test_names_that_look_like_patterns() -> None:
    net = nn.Sequential()
    for name, module in {"a[b]": nn.Conv2d(3, 8, 1), "a*": nn.Conv2d(8, 8, 1), "pool": nn.AdaptiveAvgPool2d(1),
                         "flat": nn.Flatten(), "ab": nn.Linear(8, 4)}.items():
        net.add_module(name, module)
    found = ts.sensitivity(net, torch.randn(1, 3, 4, 4), pictures(size=4), ratios=(0.5,))
    assert [group.kept for group in found.groups] == [(4,), (4,)]
    plan = ts.plan(net, torch.randn(1, 3, 4, 4), scope={"a[[]b]": 0.5, "a[*]": 1.0})
    assert (len(plan.kept["a[b].weight"][0]), 0 in plan.kept.get("a*.weight", {})) == (4, False)


@pytest.mark.parametrize(("scope", "kept"), [
    ({"stem": 0.5, "end": 0.75}, 6),  # between them they name all layers that make these channels: the largest share
    ({"stem": 0.75, "end": 0.5, "*": 0.25}, 2),  # one pattern that all match comes first, as ever
    ({"stem": 0.5}, 8),  # the other layer is named by none
    ({"s*": 0.5, "e*": 0.5, "inner": 1.0}, 4),
])
def test_patterns_rule_a_group_between_them(scope: dict[str, float], kept: int) -> None:
    plan = ts.plan(residual(), torch.randn(1, 3, 8, 8), scope=scope)
    assert len(plan.kept.get("stem.weight", {}).get(0, range(8))) == kept


# --- as data, as text, as a drawing -----------------------------------------------------------------------------------

def test_it_goes_through_json() -> None:
    model, batches = residual(), pictures()
    found = ts.sensitivity(model, batches[0][0][:1], batches, ratios=(0.5, 0.2))
    assert Sensitivity.from_json(found.to_json()) == found
    for text in ("", "[]", "{}", '{"format": 2}', found.to_json().replace('"base"', '"bass"'),
                 found.to_json().replace('"channels"', '"channel"')):
        with pytest.raises(CheckpointError, match=r"^sensitivity.*give the text that Sensitivity\.to_json wrote"):
            Sensitivity.from_json(text)


def test_it_prints_as_a_table() -> None:
    assert str(FOUND).splitlines() == [
        "Sensitivity: accuracy 99.0% as it is, on 100 answers; then with a share of one group's channels",
        "  group         0.9     0.5     0.1",
        "  a (10)      98.0%   97.0%   99.0%",
        "  c[0] (10)  100.0%   98.5%   20.0%"]


def test_the_drawing_is_one_file_with_every_number() -> None:
    text = FOUND.svg()
    root = ET.fromstring(text)
    said = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for part in ("98.0%", "97.0%", "99.0%", "20.0%", "90%", "50%", "10%", "10"):
        assert part in said
    cells = [element for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("fill")]
    assert [next(iter(cell)).text for cell in cells][:2] == [
        "9 of 10 channels, 90.0% of the multiply-adds", "5 of 10 channels, 50.0% of the multiply-adds"]
    # darker where more is lost
    dark = [sum(int(str(cell.get("fill"))[at:at + 2], 16) for at in (1, 3, 5)) for cell in cells[3:]]
    assert dark == sorted(dark, reverse=True)
    assert dark[0] > dark[-1]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    odd = replace(FOUND, groups=(replace(FOUND.groups[0], name="<&>", values=(0.5, float("nan"), 0.1)),))
    ET.fromstring(odd.svg())


# --- what goes wrong --------------------------------------------------------------------------------------------------

def _generator() -> object:
    return (batch for batch in pictures())


@pytest.mark.parametrize(("options", "message"), [
    ({"ratios": ()}, r"ratios: got \(\), wanted shares of channels kept"),
    ({"ratios": (0.5, 0)}, r"ratios: got \(0\.5, 0\), wanted shares"),
    ({"ratios": 1.5}, r"ratios: got 1\.5, wanted shares"),
    ({"ratios": (0.5, None)}, r"ratios: got \(0\.5, None\), wanted shares"),
    ({"ratios": "0.5"}, r"ratios: got '0\.5', wanted shares"),
    ({"measure": "loss"}, "measure: got 'loss', wanted one of accuracy, agreement, error"),
    ({"importance": "guess"}, "importance: unknown criterion 'guess'"),
    ({"only": ["nothing.*"]}, "only: no layer that makes channels matches 'nothing"),
    ({"exclude": ["*"]}, "no channel group can be cut: .*among exclude="),
    ({"data": []}, "data: no batch in it"),
    ({"data": _generator}, "data: got generator, wanted batches that can be gone through many times"),
    ({"data": torch.randn(4, 3, 8, 8)}, "data: got tensor 4x3x8x8 float32, wanted an iterable of batches"),
    ({"data": [torch.randn(4, 5, 8, 8)]}, "data: batch 0 is tensor 4x5x8x8 float32, on which the model fails"),
    ({"data": [torch.randn(4, 3, 8, 8), torch.full((4, 3, 8, 8), torch.nan)]}, "batch 1 holds NaN"),
    ({"data": [torch.full((4, 3, 8, 8), torch.inf)], "measure": "error"}, "values that are not finite on batch 0"),
    ({"data": [torch.randn(4, 3, 8, 8)], "measure": "accuracy"}, "data: batch 0 has no labels, and accuracy asks"),
    ({"data": [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 4]))]}, "batch 0 has class 4, the model scores 4"),
    ({"data": [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1]))]}, r"targets of shape \(2,\), the model gives answers"),
])
def test_requests_that_make_no_sense(options: dict[str, object], message: str) -> None:
    data = options.pop("data", pictures())
    given: object = data() if isinstance(data, Callable) else data  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message) as caught:
        ts.sensitivity(residual(), torch.randn(1, 3, 8, 8), given, **options)
    assert "\n" not in str(caught.value)
