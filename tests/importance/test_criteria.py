"""How much each channel matters: the formulas by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchslim as ts
from helpers import Calls, Untouched, conv, random_statistics
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance import CRITERIA, L1, L2, LAMP, ByGroup, Criterion, Evidence, criterion, score

X = torch.randn(2, 3, 8, 8)


def network() -> nn.Sequential:
    return random_statistics(nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.Flatten(),
                                           nn.Linear(256, 2)))


def group_of(model: nn.Module, layer: str, x: Tensor = X) -> ChannelGroup:
    return next(group for group in ts.groups(model, x) if layer in group.makers)


def scores(model: nn.Module, layer: str, importance: Any, x: Tensor = X, **evidence: Any) -> list[float]:
    [found] = score((group_of(model, layer, x),), criterion(importance), Evidence(model, x, **evidence))
    return found.tolist()


def relative(values: Tensor) -> list[float]:
    return (values / values.mean()).tolist()


# Formulas


def test_l2_is_the_root_mean_square_of_what_makes_and_reads() -> None:
    model = network()
    own, reader = model[0].weight.double(), model[3].weight.double()
    squares = own.square().sum((1, 2, 3)) + reader.square().sum((0, 2, 3))
    expected = (squares / (27 + 36)).sqrt()
    assert scores(model, "0", "l2") == pytest.approx(relative(expected), rel=1e-6)


def test_l1_is_the_mean_of_what_makes_and_reads() -> None:
    model = network()
    own, reader = model[0].weight.double(), model[3].weight.double()
    expected = (own.abs().sum((1, 2, 3)) + reader.abs().sum((0, 2, 3))) / (27 + 36)
    assert scores(model, "0", "l1") == pytest.approx(relative(expected), rel=1e-6)


def test_flattened_readers_count_every_column() -> None:
    model = network()
    own, columns = model[3].weight.double(), model[5].weight.double().view(2, 4, 64)
    expected = ((own.square().sum((1, 2, 3)) + columns.square().sum((0, 2))) / (54 + 128)).sqrt()
    assert scores(model, "3", "l2") == pytest.approx(relative(expected), rel=1e-6)


def test_grouped_readers_count_their_own_filters() -> None:
    model = random_statistics(nn.Sequential(conv(3, 8), conv(8, 12, groups=4), conv(12, 2)))
    own = model[0].weight.double().square().sum((1, 2, 3))
    reader = model[1].weight.double().view(4, 3, 2, 9).square().sum((1, 3)).flatten()
    assert scores(model, "0", "l2") == pytest.approx(relative(((own + reader) / (27 + 27)).sqrt()), rel=1e-6)


def test_transposed_layers_make_along_their_second_dimension() -> None:
    model = random_statistics(nn.Sequential(nn.ConvTranspose2d(3, 6, 2), conv(6, 2)))
    own = model[0].weight.double().abs().sum((0, 2, 3))
    reader = model[1].weight.double().abs().sum((0, 2, 3))
    assert scores(model, "0", "l1") == pytest.approx(relative((own + reader) / (12 + 18)), rel=1e-6)


def test_all_layers_of_a_shortcut_count() -> None:
    model = random_statistics(Calls(lambda s, x: s.c(s.a(x) + s.b(x)), a=conv(3, 6), b=conv(3, 6), c=conv(6, 2)))
    total = sum(layer.weight.double().abs().sum((1, 2, 3)) for layer in (model.a, model.b))
    total = total + model.c.weight.double().abs().sum((0, 2, 3))
    assert scores(model, "a", "l1") == pytest.approx(relative(total), rel=1e-6)


def test_bn_scale_is_the_mean_size_of_the_scales() -> None:
    model = network()
    assert scores(model, "0", "bn_scale") == pytest.approx(model[1].weight.abs().tolist(), rel=1e-6)
    both = random_statistics(Calls(lambda s, x: s.c(s.m(s.a(x)) + s.n(s.b(x))), a=conv(3, 6), b=conv(3, 6),
                                   m=nn.BatchNorm2d(6), n=nn.BatchNorm2d(6), c=conv(6, 2)))
    expected = (both.m.weight.abs() + both.n.weight.abs()) / 2
    assert scores(both, "a", "bn_scale") == pytest.approx(expected.tolist(), rel=1e-6)


def test_fpgm_is_the_sum_of_distances_to_the_other_filters() -> None:
    model = network()
    filters = model[0].weight.double().flatten(1)
    expected = torch.stack([sum((a - b).norm() for b in filters) for a in filters])
    assert scores(model, "0", "fpgm") == pytest.approx(relative(expected), rel=1e-6)


def test_fpgm_finds_the_filter_that_others_stand_in_for() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[4] = model[0].weight[[0, 1, 2, 3, 5]].mean(0)
    assert int(np.argmin(scores(model, "0", "fpgm"))) == 4


def test_lamp_is_the_share_of_those_that_are_no_smaller() -> None:
    model = network()
    own, reader = model[0].weight.double(), model[3].weight.double()
    squares = (own.square().sum((1, 2, 3)) + reader.square().sum((0, 2, 3))).tolist()
    expected = [one / sum(other for other in squares if other >= one) for one in squares]
    assert scores(model, "0", "lamp") == pytest.approx(expected, rel=1e-6)
    assert max(scores(model, "0", "lamp")) == 1
    with torch.no_grad():
        model[0].weight[:] = model[0].weight[:1].clone()
        model[3].weight[:] = model[3].weight[:, :1].clone()
    assert scores(model, "0", "lamp") == pytest.approx([1 / 6] * 6)  # equal channels score alike


def gated(model: nn.Module, layers: list[str], channels: int, x: Tensor, y: Tensor) -> Tensor:
    """What the loss loses for each channel of what these layers read: its derivative by a factor of 1."""
    gate = torch.ones(channels, dtype=x.dtype, requires_grad=True)
    handles = [model.get_submodule(layer).register_forward_pre_hook(lambda _, args: (args[0] * gate[:, None, None],))
               for layer in layers]
    cross_entropy(model.eval()(x).flatten(1), y).backward()
    for handle in handles:
        handle.remove()
    assert gate.grad is not None
    return gate.grad


def test_taylor_is_the_squared_derivative_by_a_gate_on_the_channel() -> None:
    model, y = network().double(), torch.tensor([0, 1])
    batches = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(3)]
    found = scores(model, "0", "taylor", batches[0], data=[(x, y) for x in batches], loss=cross_entropy)
    expected = torch.stack([gated(model, ["3"], 6, x, y).square() for x in batches]).mean(0)
    assert found == pytest.approx(expected.tolist(), rel=1e-9)
    both = random_statistics(Calls(lambda s, x: s.b(x.relu()) + s.c(x.relu()) if x.shape[1] == 6 else s(s.a(x)),
                                   a=conv(3, 6), b=conv(6, 2), c=conv(6, 2, groups=2))).double()
    loss = lambda out, y: cross_entropy(out.flatten(1), y)  # noqa: E731
    found = scores(both, "a", "taylor", batches[0], data=[(batches[0], y)], loss=loss)
    expected = gated(both, ["b", "c"], 6, batches[0], y).square()
    assert found == pytest.approx(expected.tolist(), rel=1e-9)


def test_hessian_is_half_the_squares_of_weight_times_gradient() -> None:
    model, y = network().eval(), torch.tensor([0, 1])
    found = scores(model, "0", "hessian", data=[(X, y), (X + 1, y)], loss=cross_entropy)
    expected = torch.zeros(6)
    for x in (X, X + 1):
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        expected += (model[3].weight * model[3].weight.grad).square().sum((0, 2, 3)).detach() / 4
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


def test_data_and_loss_reach_the_plan_and_leave_the_model_as_it_was() -> None:
    model = network()
    model[3].weight.requires_grad_(False)
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])) for _ in range(2)]
    before = Untouched(model)
    for importance in ("taylor", "hessian"):
        plan = ts.plan(model, X, channels=0.7, importance=importance, data=data, loss=cross_entropy)
        found = scores(model, "0", importance, data=data, loss=cross_entropy)
        wanted = np.argsort(found)[-len(plan.kept["0.weight"][0]):]
        assert plan.kept["0.weight"][0] == tuple(sorted(wanted.tolist()))
    before.check()


@pytest.mark.parametrize(("data", "loss", "said"), [
    (None, cross_entropy, "'taylor' asks for data="), ([(X, torch.tensor([0, 1]))], None, "and loss="),
    ([], cross_entropy, "no batch in it"), (X, cross_entropy, "float32, wanted an iterable"),
    ([X], cross_entropy, "batch 0 is tensor 2x3x8x8 float32, wanted a pair (inputs, targets)"),
    ([(X, 1, 2)], cross_entropy, "batch 0 is tuple of 3"), ([(X, torch.tensor([0, 1]))], 5, "loss: got int"),
    ([(X, torch.tensor([0, 7]))], cross_entropy, "batch 0 fails"),
    ([(X, None)], lambda out, y: out, "loss: gave Tensor of 4 numbers, wanted a scalar"),
    ([(X, None)], lambda out, y: (out * float("nan")).sum(), "loss: nan on batch 0"),
    ([(X[:, :2], torch.tensor([0, 1]))], cross_entropy, "batch 0 fails")])
def test_data_that_says_nothing_is_refused_in_one_line(data: Any, loss: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        ts.plan(network(), X, macs=0.5, importance="taylor", data=data, loss=loss)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_no_gradient_reaches_is_named() -> None:
    model = Calls(lambda s, x: s.c(s.a(x).relu()) + s.d(s.b(x).detach()), a=conv(3, 6), b=conv(3, 6), c=conv(6, 2),
                  d=conv(6, 2))
    loss = lambda out, y: out.square().mean() + model.zero  # noqa: E731
    model.zero = 0.0  # type: ignore[assignment]
    model.d.weight.requires_grad_(False)  # a copy asks for gradients all the same
    assert ts.plan(model, X, macs=0.5, importance="taylor", data=[(X, None)], loss=loss).kept
    unread = Calls(lambda s, x: (s.c(s.a(x)), s.d(s.b(x))), a=conv(3, 6), b=conv(3, 6), c=conv(6, 2), d=conv(6, 2))
    with pytest.raises(RequestError, match="no gradient reaches weights that read the channels of `b`"):
        ts.plan(unread, X, macs=0.5, importance="taylor", data=[(X, None)], loss=lambda out, _: out[0].sum())


@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm"])
def test_scores_of_all_zeros_are_zeros(importance: str) -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert scores(model, "0", importance) == [0.0] * 6


@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm"])
def test_scores_are_relative_to_their_groups_mean(importance: str) -> None:
    model = network()
    before = scores(model, "0", importance)
    assert np.mean(before) == pytest.approx(1.0)
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight *= 100
    assert scores(model, "0", importance) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("importance", CRITERIA)
def test_every_criterion_ranks_every_dtype(importance: str, dtype: torch.dtype) -> None:
    model, x = network().to(dtype), X.to(dtype)
    evidence = Evidence(model, x, [(x, torch.tensor([0, 1]))], cross_entropy, gains=lambda _: 1.0)
    for own in score([group_of(model, "0", x)], criterion(importance), evidence):
        assert own.dtype == np.float64
        assert own.shape == (6,)
        assert len(set(own.tolist())) > 1


def test_sums_are_made_once_for_all_groups() -> None:
    model = random_statistics(Calls(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), a=conv(3, 4), b=conv(3, 6),
                                    c=conv(10, 2)))
    evidence = Evidence(model, X)
    reader = {name: next(m for m in group_of(model, name).members if m.role == "reads") for name in "ab"}
    expected = model.c.weight.double().abs().sum((0, 2, 3))
    assert evidence.sums(reader["a"], 1) == pytest.approx(expected[:4].detach().numpy(), rel=1e-6)
    assert evidence.sums(reader["b"], 1) == pytest.approx(expected[4:].detach().numpy(), rel=1e-6)


def test_norms_over_filters_alone_or_all_that_goes_with_a_channel() -> None:
    model = network()
    own, reader = model[0].weight.double(), model[3].weight.double()
    assert scores(model, "0", "l1:filters") == pytest.approx(relative(own.abs().sum((1, 2, 3))), rel=1e-6)
    every = own.square().sum((1, 2, 3)) + reader.square().sum((0, 2, 3))
    for one in (model[0].bias, model[1].weight, model[1].bias):  # and not the norm's statistics
        every = every + one.double().square()
    assert scores(model, "0", L2(over="all")) == pytest.approx(relative(every.sqrt()), rel=1e-6)


# Normalisation


def test_scores_are_made_comparable_from_group_to_group() -> None:
    model = random_statistics(nn.Sequential(conv(3, 6), conv(6, 8), conv(8, 8), conv(8, 8), conv(8, 4)))
    groups = [group for group in ts.groups(model, X) if not group.frozen]
    given = {group.name: np.arange(1.0, group.channels + 1) * (1 + place) for place, group in enumerate(groups)}

    def normalized(how: Any) -> dict[str, list[float]]:
        found = score(groups, ByGroup(lambda group: given[group.name], normalize=how), Evidence(model, X))
        return {group.name: own.tolist() for group, own in zip(groups, found, strict=True)}

    assert normalized("none") == {name: own.tolist() for name, own in given.items()}
    assert normalized("max") == {name: pytest.approx((own / own.max()).tolist()) for name, own in given.items()}
    assert normalized("mean") == {name: pytest.approx((own / own.mean()).tolist()) for name, own in given.items()}
    assert list(given) == ["0", "1", "2", "3"]
    assert normalized("kind") == normalized("mean")  # no two layers have as many inputs, filters and readers


def test_blocks_of_one_stage_are_normalised_together() -> None:
    model = ts.create_model("torchvision:resnet18", num_classes=10)
    x = torch.rand(1, 3, 32, 32)
    groups = [group for group in ts.groups(model, x) if not group.frozen]
    by_name = {group.name: place for place, group in enumerate(groups)}
    given = [np.full(group.channels, 1.0 + place) for place, group in enumerate(groups)]
    evidence = Evidence(model, x)
    found = score(groups, ByGroup(lambda group: given[by_name[group.name]], normalize="kind"), evidence)
    alone = {name: found[place].tolist() for name, place in by_name.items()}
    both = [by_name["layer1.0.conv1"], by_name["layer1.1.conv1"]]
    mean = np.mean([1.0 + place for place in both])
    assert alone["layer1.0.conv1"] == pytest.approx([(1 + both[0]) / mean] * 64)
    assert alone["layer1.1.conv1"] == pytest.approx([(1 + both[1]) / mean] * 64)
    assert alone["layer2.0.conv1"] == pytest.approx([1.0] * 128)  # reads half as many as layer2.1.conv1 does
    assert alone["layer2.1.conv1"] == pytest.approx([1.0] * 128)


# By name, as an instance, of one's own


def test_a_name_is_short_for_an_instance() -> None:
    model = network()
    assert criterion("l2") == L2() == L2(normalize="mean")
    assert criterion("l2:max") == L2(normalize="max")
    assert criterion("l1:filters") == L1("filters")
    assert criterion("lamp:kind") == LAMP(normalize="kind")
    assert criterion(L1()) == L1()
    assert ts.plan(model, X, macs=0.5, importance=L2()) == ts.plan(model, X, macs=0.5, importance="l2")
    plan = ts.plan(model, X, macs=0.5, importance="l2:max")
    assert plan.settings["importance"] == "l2:max"
    assert plan == ts.plan(model, X, macs=0.5, importance=L2(normalize="max"))
    assert np.max(scores(model, "0", "l2:max")) == 1
    assert ts.plan(model, X, macs=0.5, importance=ts.importance.Random(5)) != ts.plan(
        model, X, macs=0.5, importance="random", seed=6)
    assert ts.plan(model, X, macs=0.5, importance=ts.importance.Random(5)).kept == ts.plan(
        model, X, macs=0.5, importance="random", seed=5).kept


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_print_as_their_names(name: str) -> None:
    assert criterion(name).name == str(criterion(name)) == name
    for field, words in CRITERIA[name].all_choices().items():
        for word in words:
            one = criterion(f"{name}:{word}")
            assert getattr(one, field) == word
            assert criterion(str(one)) == one
    assert (CRITERIA[name].__doc__ or "").strip()


def test_criteria_that_no_name_says_print_as_code() -> None:
    assert str(ts.importance.Random(3)) == "Random(seed=3)"
    assert str(L1("filters", normalize="max")) == "L1(normalize='max', over='filters')"
    assert str(ByGroup(lambda group: [1], normalize="max")) == "callable:max"


@pytest.mark.parametrize(("importance", "said"), [
    ("l2:min", "'l2:min': unknown option 'min'; after l2: wanted one of filters, weights, all, none, mean, max, kind"),
    ("l2:max:filters", r"unknown option 'max:filters'; .* for several give an instance, torchslim\.importance\.L2\(\)"),
    ("l2:", "unknown option ''"), ("", "unknown criterion ''"), (5, "unknown criterion 5"),
    (None, "unknown criterion None"), (":l2", "unknown criterion ':l2'"),
    (L2, r"L2 is a class; give an instance, L2\(\)")])
def test_a_criterion_that_is_none_is_refused(importance: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ts.plan(network(), X, macs=0.5, importance=importance)


def test_fields_are_checked() -> None:
    with pytest.raises(RequestError, match="L2: normalize='min' found, wanted one of none, mean, max, kind"):
        L2(normalize="min")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="L1: over='max' found, wanted one of filters, weights, all"):
        L1("max")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Saved(Criterion):
    """A criterion of a user's own: sees all groups at once, and what their channels cost."""

    needs = "inputs"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Any]:
        assert len(evidence.batches) == 2
        return [np.full(group.channels, evidence.gains(group)) for group in groups]


def test_a_criterion_sees_all_groups_at_once_and_what_they_cost() -> None:
    """One channel of `0` is read by 4 filters, one of `3` by 2 x 64 weights: oracle by hand."""
    model, seen = network(), {}

    class Watching(Saved):
        def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Any]:
            seen.update({group.name: evidence.gains(group) for group in groups})
            return super().__call__(groups, evidence)

    plan = ts.plan(model, X, channels=0.7, importance=Watching(), data=iter([X, X]))
    assert seen == {"0": 2 * 64 * 9 * (3 + 4), "3": 2 * (64 * 9 * 6 + 2 * 64)}
    assert plan.settings["importance"] == "Watching()"
    with pytest.raises(RequestError, match=r"importance 'Saved\(\)' asks for data=, batches of inputs without"):
        ts.plan(model, X, macs=0.5, importance=Saved())


def test_with_a_loss_the_inputs_are_the_first_of_each_pair() -> None:
    y = torch.tensor([0, 1])
    assert ts.plan(network(), X, macs=0.5, importance=Saved(), data=[(X, y)] * 2, loss=cross_entropy).kept


def test_a_criterion_that_forgets_a_group_is_refused() -> None:
    class Short(Saved):
        needs = "nothing"

        def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Any]:
            return []

    with pytest.raises(RequestError, match="gave scores for 0 groups, wanted 2, one array a group"):
        ts.plan(network(), X, macs=0.5, importance=Short())


# Random and callables


def test_random_depends_on_the_seed_alone() -> None:
    model = network()
    assert scores(model, "0", "random", seed=1) == scores(network(), "0", "random", seed=1)
    assert scores(model, "0", "random", seed=1) != scores(model, "0", "random", seed=2)
    before = torch.get_rng_state()
    scores(model, "0", "random")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [
    list, tuple, np.array, torch.tensor, lambda values: torch.tensor(values, dtype=torch.bfloat16),
    lambda values: torch.tensor(values, requires_grad=True)])
def test_a_callable_scores_each_group(kind: Any) -> None:
    model = network()
    asked: list[str] = []

    def importance(group: ChannelGroup) -> Any:
        asked.append(group.name)
        return kind([float(i) for i in range(group.channels)])

    assert scores(model, "0", importance) == [0.0, 1, 2, 3, 4, 5]
    plan = ts.plan(model, X, scope={"0": 0.5}, importance=importance)
    assert plan.kept["0.weight"][0] == (3, 4, 5)
    assert plan.settings["importance"] == "callable"
    assert asked == ["0", "0", "3"]


def test_only_groups_that_may_be_cut_are_scored() -> None:
    def importance(group: ChannelGroup) -> list[int]:
        assert group.name == "3"
        assert not group.frozen
        return list(range(group.channels))

    assert ts.plan(network(), X, channels=0.9, only=["3"], importance=importance).kept["3.weight"][0]


# What is refused


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(RequestError, match=r"unknown criterion 'l3'; wanted one of activation, auto, bn_scale, fpgm, "
                                           r"hessian, l1, l2, lamp, obs, random, taylor, or a callable\(group\)"):
        ts.plan(network(), X, macs=0.5, importance="l3")


@pytest.mark.parametrize(("returned", "message"), [
    ([1.0] * 5, r"`0` got scores of shape \(5,\), wanted \(6,\)"),
    (1.0, r"`0` got scores of shape \(\), wanted \(6,\)"),
    ([[1.0] * 6], r"`0` got scores of shape \(1, 6\), wanted \(6,\)"),
    ([1.0] * 5 + [float("nan")], r"`0` got scores of shape \(6,\) with values that are not finite"),
    ([1.0] * 5 + [float("inf")], "not finite"),
])
def test_scores_that_are_not_one_finite_number_a_channel_are_refused(returned: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        scores(network(), "0", lambda _: returned)


@pytest.mark.parametrize("returned", [None, "high", [None] * 6, ["a"] * 6, {"a": 1}])
def test_scores_that_are_no_numbers_are_refused(returned: Any) -> None:
    with pytest.raises(RequestError, match=r"importance.*: `0` got"):
        scores(network(), "0", lambda _: returned)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[2, 0, 0, 0] = float("nan")
    with pytest.raises(RequestError, match=r"`0` got scores .* not finite"):
        ts.plan(model, X, macs=0.5)


def test_bn_scale_without_a_norm_names_the_group() -> None:
    with pytest.raises(RequestError, match=r"'bn_scale': no batch norm scales the channels of `3`; use importance="
                                           r"'l2', or exclude the layer"):
        ts.plan(network(), X, macs=0.5, importance="bn_scale")
    plan = ts.plan(network(), X, macs=0.7, importance="bn_scale", exclude=["3"])
    assert "3.weight" in plan.kept
    assert 0 not in plan.kept["3.weight"]


def test_weights_without_data_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = nn.Sequential(conv(3, 6), conv(6, 2))
    with pytest.raises(RequestError, match=r"`0`.*meta device.*random"):
        ts.plan(model, X, macs=0.5, importance="l2")
    assert ts.plan(model, X, macs=0.5, importance="random").kept


# Ties


@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm", "bn_scale"])
def test_equal_scores_break_by_position(importance: str) -> None:
    """The same plan on every machine: of equal channels the first go."""
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    options = {"scope": {"0": 0.5}, "exclude": ["3"], "importance": importance}
    plan = ts.plan(model, X, **options)
    assert plan.kept["0.weight"][0] == (3, 4, 5)
    assert ts.plan(model, X, **options) == plan


@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm", "bn_scale"])
@pytest.mark.parametrize("name", ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.nightly)])
def test_plans_do_not_depend_on_the_number_of_threads(name: str, importance: str) -> None:
    torch.manual_seed(0)
    model = random_statistics(ts.create_model(f"torchvision:{name}", num_classes=10))
    threads = torch.get_num_threads()
    texts = set()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            plan = ts.plan(model, torch.rand(1, 3, 64, 64), macs=0.5, importance=importance)
            texts.add(plan.to_json())
    finally:
        torch.set_num_threads(threads)
    assert len(texts) == 1


def test_filters_that_are_equal_score_equally_however_many_threads_add() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(128, 32), nn.ReLU(), conv(32, 4))
    with torch.no_grad():
        model[0].weight[16:] = model[0].weight[:16]
    group, threads = group_of(model, "0", torch.randn(1, 128, 8, 8)), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(score([group], criterion("fpgm"), Evidence(model, X))[0].tolist())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert found[0][:16] == found[0][16:]
