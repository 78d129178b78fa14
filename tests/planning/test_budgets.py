"""Budgets: never above, close below where there is freedom, and what every setting leaves alone."""

from __future__ import annotations

import re
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import Calls, conv, count, counted_macs, random_statistics
from torchslim.costs.cost_models import CostModel
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError, TraceError
from torchslim.planning.budgets import as_count
from torchslim.rules.declarations import CostTerm
from torchslim.surgery.plans import Plan
from torchslim.utils.patterns import all_match

X = torch.randn(1, 3, 16, 16)


def chain() -> nn.Sequential:
    return random_statistics(nn.Sequential(
        conv(3, 64), nn.BatchNorm2d(64), nn.ReLU(), conv(64, 96), nn.ReLU(), conv(96, 48), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10)))


def residual(times: int = 1) -> nn.Module:
    return random_statistics(Calls(
        lambda s, x: s.head(s.b(s.a(s.stem(x).relu()).relu()) + s.stem(x)),
        stem=conv(3, 40 * times), a=conv(40 * times, 64 * times), b=conv(64 * times, 40 * times),
        head=conv(40 * times, 5)))


def wide() -> nn.Module:
    """So wide that a channel is less than a hundredth of any cost."""
    return random_statistics(nn.Sequential(
        conv(3, 512), nn.BatchNorm2d(512), nn.ReLU(), conv(512, 700), nn.ReLU(), conv(700, 400),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(400, 500), nn.ReLU(), nn.Linear(500, 10)))


def widths(plan: Plan, model: nn.Module) -> dict[str, int]:
    """Output channels of every layer that has some, after the cut."""
    return {name: layer.weight.shape[0] for name, layer in ts.apply(model, plan).named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)}


def spent(model: nn.Module, x: Tensor) -> dict[str, int]:
    made = sum(layer.weight.shape[0] for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return {"macs": counted_macs(model, x), "params": count(model), "channels": made}


# Meeting a budget


@pytest.mark.parametrize("resource", ["macs", "params", "channels"])
@pytest.mark.parametrize("share", [0.9, 0.12])
@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("build", [wide, lambda: residual(10)], ids=["chain", "residual"])
def test_a_share_is_met_from_below_within_a_hundredth(resource: str, share: float, scope: str, build: Any) -> None:
    model = build()
    plan = ts.plan(model, X, **{resource: share}, scope=scope)
    [budget] = plan.budgets
    before, after = spent(model, X), spent(ts.apply(model, plan), X)
    assert (budget.resource, budget.before) == (resource, before[resource])
    assert budget.asked == int(before[resource] * share)
    assert budget.met == after[resource]
    assert plan.predicted == {"macs": after["macs"], "params": after["params"]}
    assert 0.99 * budget.asked <= budget.met <= budget.asked
    assert plan.notes == ()


def test_what_comes_in_steps_says_how_far_below_it_is_and_what_comes_next() -> None:
    model = chain()
    plan = ts.plan(model, X, macs=0.5, round_to=32)
    [budget], [note] = plan.budgets, plan.notes
    share = (budget.asked - budget.met) / budget.before
    assert share > 0.01
    above, kept = feasible(note)
    assert note == (
        f"macs: {budget.met:,} is {share:.1%} of the whole below what was asked; the next step is larger (rounding, by "
        f"which `3` loses 32 channels at once), and the nearest feasible budget above is {above:,}, a share of {kept}")
    assert above > budget.asked
    for asked in (above, float(kept)):
        again = ts.plan(model, X, macs=asked, round_to=32)
        assert above <= again.budgets[0].met <= again.budgets[0].asked
        assert again.notes == ()


def feasible(note: str) -> tuple[int, str]:
    """The nearest feasible budget that a remark names: the count, and the share as it stands there."""
    found = re.search(r"nearest feasible budget (?:is|above is) ([\d,]+), a share of (\d\.\d{4})", note)
    assert found is not None, note
    return int(found[1].replace(",", "")), found[2]


def test_steps_of_rows_and_of_single_channels_are_told_apart() -> None:
    rows = nn.Sequential(conv(3, 32), conv(32, 32, groups=16), conv(32, 8))
    [note] = ts.plan(rows, X, params=0.7).notes
    assert "the next step is larger (the rows of `1` lose equally many)" in note
    single = nn.Sequential(conv(3, 6), conv(6, 8), nn.Flatten(), nn.Linear(8 * 256, 10))
    [note] = ts.plan(single, X, params=0.7).notes
    assert "the next step is larger (a single channel of `1`)" in note
    for model, note_of in ((rows, ts.plan(rows, X, params=0.7)), (single, ts.plan(single, X, params=0.7))):
        above, _ = feasible(note_of.notes[0])
        assert ts.plan(model, X, params=above).budgets[0].met == above


def test_of_several_budgets_the_tightest_is_what_counts() -> None:
    plan = ts.plan(wide(), X, macs=0.5, params=0.9)
    assert plan.notes == ()
    assert plan.budgets[1].met < 0.9 * plan.budgets[1].before


def test_a_count_is_met_like_a_share() -> None:
    model = chain()
    before = spent(model, X)
    for resource in ("macs", "params", "channels"):
        asked = before[resource] // 2
        by_count, by_share = (ts.plan(model, X, **{resource: one}) for one in (asked, 0.5))
        assert by_count.budgets[0].asked == asked
        assert by_count.kept == by_share.kept


def test_several_budgets_are_all_met() -> None:
    model = chain()
    asked = {"macs": 0.5, "params": 0.3, "channels": 0.6}
    plan = ts.plan(model, X, **asked)
    assert [budget.resource for budget in plan.budgets] == list(asked)
    after = spent(ts.apply(model, plan), X)
    for budget in plan.budgets:
        assert budget.met == after[budget.resource] <= budget.asked
    assert any(budget.met >= 0.99 * budget.asked for budget in plan.budgets)


def test_a_budget_that_is_met_already_cuts_nothing() -> None:
    model = chain()
    plan = ts.plan(model, X, macs=1.0)
    assert plan.kept == {}
    assert plan.notes == ()
    assert plan.budgets[0].met == plan.budgets[0].before


@pytest.mark.parametrize("resource", ["macs", "params", "channels"])
def test_a_budget_that_cannot_be_met_says_so(resource: str) -> None:
    model = chain()
    plan = ts.plan(model, X, **{resource: 1}, strict=False)
    [budget] = plan.budgets
    assert budget.met > budget.asked == 1
    whole = spent(model, X)[resource]
    least = spent(nn.Sequential(conv(3, 2), nn.BatchNorm2d(2), conv(2, 2), conv(2, 2), nn.AdaptiveAvgPool2d(1),
                                nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 10)), X)[resource]
    assert least <= budget.met <= 1.01 * least
    classifier = {"macs": 0, "params": 10, "channels": 10}[resource]  # what is left of it without a channel to read
    why = (f"the protected channels, those that are left alone, cost {classifier} by themselves" if classifier else
           "the minimum width of the groups (2 channels, min_channels=, min_kept= or a share by pattern) allows no "
           "less")
    [note] = plan.notes
    above, share = feasible(note)
    assert above == budget.met
    assert note == (f"{resource}: asked for at most 1, which can't be met; the nearest feasible budget is "
                    f"{budget.met:,}, a share of {share}: {why}")
    assert float(share) - 2e-4 <= budget.met / whole <= float(share)
    for asked in (above, float(share)):
        again = ts.plan(model, X, **{resource: asked})
        assert again.notes == ()
        assert again.budgets[0].met <= again.budgets[0].asked
    slim = ts.apply(model, plan)
    assert spent(slim, X)[resource] == budget.met
    assert slim(X).shape == (1, 10)


def test_costs_are_those_of_the_inputs_as_given() -> None:
    model = chain()
    one, four = (ts.plan(model, torch.randn(n, 3, 16, 16), macs=0.5) for n in (1, 4))
    assert four.budgets[0].before == 4 * one.budgets[0].before
    assert four.kept == one.kept


def test_the_least_important_channels_go() -> None:
    model = chain()
    with torch.no_grad():
        for layer, reader in ((model[0], model[3]), (model[3], model[5])):
            layer.weight[10:20] *= 1e-3
            reader.weight[:, 10:20] *= 1e-3
    plan = ts.plan(model, X, channels=282 - 20)
    gone = {name: set(range(size)) - set(plan.kept[f"{name}.weight"][0]) for name, size in (("0", 64), ("3", 96))}
    assert gone == {"0": set(range(10, 20)), "3": set(range(10, 20))}
    assert plan.budgets[0].met == 262


def test_removals_that_are_not_needed_are_given_back() -> None:
    """One channel of the wide layer is dear: the cheap ones that went before it may stay."""
    model = nn.Sequential(conv(3, 8, 1), conv(8, 4, 1))
    importance = {"0": [float(i) for i in range(8)]}
    total = counted_macs(model, X)
    plan = ts.plan(model, X, macs=total - 1, importance=lambda group: importance[group.name])
    assert plan.kept["0.weight"][0] == tuple(range(1, 8))


# Scope


def test_uniform_keeps_the_same_share_of_every_group() -> None:
    model = chain()
    found = widths(ts.plan(model, X, macs=0.25, scope="uniform"), model)
    shares = [found[name] / size for name, size in (("0", 64), ("3", 96), ("5", 48), ("8", 64))]
    assert max(shares) - min(shares) <= 2 / 48
    assert max(shares) < 0.6


def test_global_compares_over_the_whole_network() -> None:
    model = chain()
    scores = {"0": 1.0, "3": 0.1, "5": 1.0, "8": 1.0}
    plan = ts.plan(model, X, macs=0.7, importance=lambda group: [scores[group.name]] * group.channels)
    assert {name for name, dims in plan.kept.items() if 0 in dims and name.endswith("weight")} == {"3.weight"}


def test_a_share_by_pattern_rules_its_layers() -> None:
    model = chain()
    plan = ts.plan(model, X, scope={"0": 0.5, "3": 0.25})
    assert widths(plan, model) == {"0": 32, "3": 24, "5": 48, "8": 64, "10": 10}
    assert plan.budgets == ()
    assert plan.settings["scope"] == {"0": 0.5, "3": 0.25}


def test_a_share_by_pattern_keeps_at_least_that_share() -> None:
    model = chain()
    assert widths(ts.plan(model, X, scope={"5": 0.3}), model)["5"] == 15  # 14.4
    assert widths(ts.plan(model, X, scope={"5": 1.0}), model)["5"] == 48
    assert widths(ts.plan(model, X, scope={"5": 0.5}, round_to=16), model)["5"] == 32


def test_the_first_pattern_that_fits_rules() -> None:
    model = chain()
    assert widths(ts.plan(model, X, scope={"0": 0.5, "*": 0.75}), model) == {
        "0": 32, "3": 72, "5": 36, "8": 48, "10": 10}


def test_a_budget_beside_patterns_falls_on_the_others() -> None:
    model = chain()
    plan = ts.plan(model, X, macs=0.4, scope={"0": 0.75, "8": 1.0})
    found = widths(plan, model)
    assert (found["0"], found["8"]) == (48, 64)
    assert found["3"] < 96
    [budget] = plan.budgets
    assert 0.99 * budget.asked <= budget.met <= budget.asked


def test_a_pattern_rules_a_group_only_if_all_its_layers_match() -> None:
    model = residual()
    plan = ts.plan(model, X, scope={"b": 0.5})
    assert plan.kept == {}
    assert "scope: `stem` shares these channels, and no pattern matches it" in {each.reason for each in plan.left_alone}
    assert "scope" not in str(ts.plan(model, X, macs=0.5, scope={"[bs]*": 0.5}).left_alone)
    assert widths(ts.plan(model, X, scope={"[bs]*": 0.5}), model) == {"stem": 20, "a": 64, "b": 20, "head": 5}


# Rounding and least widths


@pytest.mark.parametrize("round_to", [2, 8, 16])
def test_kept_widths_are_multiples(round_to: int) -> None:
    model = chain()
    plan = ts.plan(model, X, macs=0.4, round_to=round_to)
    found = widths(plan, model)
    assert all(found[name] % round_to == 0 or found[name] == size
               for name, size in (("0", 64), ("3", 96), ("5", 48), ("8", 64)))
    assert plan.budgets[0].met <= plan.budgets[0].asked


def test_a_width_that_is_no_multiple_stays_or_becomes_one() -> None:
    model = nn.Sequential(conv(3, 10), conv(10, 4))
    assert ts.plan(model, X, scope={"0": 0.9}, round_to=8).kept == {}
    assert len(ts.plan(model, X, scope={"0": 0.8}, round_to=8).kept["0.weight"][0]) == 8


@pytest.mark.parametrize("least", [2, 7, 30, 64])
def test_no_group_gets_narrower_than_asked(least: int) -> None:
    model = chain()
    plan = ts.plan(model, X, channels=1, min_channels=least, strict=False)
    wanted = {name: min(max(least, 2), size) for name, size in (("0", 64), ("3", 96), ("5", 48), ("8", 64))}
    found = widths(plan, model)
    assert all(found[name] >= width for name, width in wanted.items())
    assert sum(found.values()) <= 1.01 * (sum(wanted.values()) + 10)


def test_two_channels_stay_in_any_case() -> None:
    """A dimension of size 1 broadcasts."""
    model = chain()
    assert set(widths(ts.plan(model, X, channels=1, min_channels=1, strict=False), model).values()) == {2, 10}


def test_rows_keep_multiples_too() -> None:
    model = nn.Sequential(conv(3, 32), conv(32, 32, groups=4), conv(32, 4))
    slim = ts.apply(model, ts.plan(model, X, macs=0.3, round_to=8))
    assert slim[0].weight.shape[0] % 8 == slim[1].weight.shape[0] % 8 == 0
    assert slim[1].groups == 4


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 1.0])
def test_no_group_loses_more_than_its_share(share: float) -> None:
    model = chain()
    plan = ts.plan(model, X, channels=1, min_kept=share, strict=False)
    assert widths(plan, model) == {"0": ceil(share * 64), "3": ceil(share * 96), "5": ceil(share * 48),
                                   "8": ceil(share * 64), "10": 10}
    [budget], [note] = plan.budgets, plan.notes
    assert feasible(note)[0] == budget.met
    assert plan.settings["min_kept"] == share


def test_a_share_of_channels_is_no_matter_of_floats() -> None:
    model = nn.Sequential(conv(3, 30), conv(30, 4))
    for options, least in (({}, 3), ({"round_to": 4}, 4), ({"min_channels": 5}, 5)):  # 0.1 * 30 is a little above 3
        plan = ts.plan(model, X, channels=1, min_kept=0.1, strict=False, **options)
        assert len(plan.kept["0.weight"][0]) == least


def test_what_a_cap_lets_stay_says_so() -> None:
    plan = ts.plan(chain(), X, params=0.5, min_kept=1.0, strict=False)
    assert plan.kept == {}
    assert "min_channels=, min_kept= and round_to= may ask for more" in plan.left_alone[1].reason


def test_rows_and_deep_networks_keep_their_share() -> None:
    model = nn.Sequential(conv(3, 32), conv(32, 48, groups=4), conv(48, 4))
    slim = ts.apply(model, ts.plan(model, X, channels=1, min_kept=0.3, strict=False))
    assert slim[0].weight.shape[0] == 4 * 3  # of the 8 that each group reads
    assert slim[1].weight.shape[0] == 4 * 4  # of the 12 that each group makes
    for name in ("mobilenet_v2", "shufflenet_v2_x1_0", "densenet121"):
        deep = network(name)
        plan = ts.plan(deep, PICTURE, macs=0.1, min_kept=0.4, importance="random", strict=False)
        assert "min_kept=" in plan.notes[0]
        assert all(len(kept[0]) >= 0.4 * len(deep.get_parameter(layer)) for layer, kept in plan.kept.items()
                   if layer.endswith(".weight") and 0 in kept)


# What may go


def test_only_and_exclude() -> None:
    model = chain()
    assert set(ts.plan(model, X, macs=0.9, only=["3"]).kept) == {"3.weight", "3.bias", "5.weight"}
    kept = ts.plan(model, X, macs=0.5, exclude=["3", "5"]).kept
    assert 0 not in kept["3.weight"]
    assert "5.weight" not in kept
    assert 0 in kept["0.weight"]
    plan = ts.plan(model, X, macs=0.9, only=["[038]"], exclude=["8"])
    assert {name for name, dims in plan.kept.items() if 0 in dims and name.endswith("weight")} <= {
        "0.weight", "1.weight", "3.weight"}
    reasons = {(entry.name, entry.channels): entry.reason for entry in plan.left_alone}
    assert reasons["5", 48] == "not among only="
    assert reasons["8", 64] == "among exclude="


def test_a_group_goes_only_if_all_its_layers_may() -> None:
    model = residual()
    assert ts.plan(model, X, macs=0.9, only=["stem"], strict=False).kept == {}
    assert 0 in ts.plan(model, X, macs=0.9, only=["stem", "b"]).kept["stem.weight"]
    assert "stem.weight" not in ts.plan(model, X, macs=0.9, exclude=["b"]).kept


def test_shortcuts_may_be_left_alone() -> None:
    model = residual()
    plan = ts.plan(model, X, macs=0.5, shortcuts=False)
    assert set(plan.kept) == {"a.weight", "a.bias", "b.weight"}
    assert ("stem", 40, "on a shortcut, and shortcuts=False") in {
        (entry.name, entry.channels, entry.reason) for entry in plan.left_alone}
    assert "stem.weight" in ts.plan(model, X, macs=0.5).kept


def test_what_is_left_alone_is_listed_with_its_reason() -> None:
    plan = ts.plan(chain(), X, macs=0.5)
    assert [(entry.name, entry.channels) for entry in plan.left_alone] == [("0", 3), ("10", 10)]
    assert plan.left_alone[1].reason == "the network's output"


def test_rows_that_meet_what_stays_stay() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8, groups=4), conv(8, 4))
    plan = ts.plan(model, X, macs=0.5, exclude=["1"], strict=False)
    assert 0 not in plan.kept.get("1.weight", {})
    assert ("1", "among exclude=") in {(entry.name, entry.reason) for entry in plan.left_alone}


# Grouped


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_the_groups_of_a_convolution_lose_equally_many(share: float) -> None:
    model = random_statistics(nn.Sequential(conv(3, 32), conv(32, 48, groups=4), nn.ReLU(), conv(48, 8)))
    plan = ts.plan(model, X, macs=share)
    slim = ts.apply(model, plan)
    assert slim[1].groups == 4
    assert plan.grouped["1.weight"] == (4, 4)
    for name, dim, size in (("1.weight", 1, 8), ("1.weight", 0, 12)):
        index = plan.kept[name].get(dim, tuple(range(4 * size)))
        per_group = np.bincount([i // size for i in index], minlength=4)
        assert len(set(per_group.tolist())) == 1
    assert plan.budgets[0].met == counted_macs(slim, X) <= plan.budgets[0].asked


# Networks as people use them

PICTURE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    return random_statistics(ts.create_model(f"torchvision:{name}", num_classes=10)).eval()


@pytest.mark.parametrize(("name", "share", "importance"), [
    *(("resnet18", share, "l2") for share in (0.8, 0.5, 0.2, 0.1)),
    *((name, 0.4, importance) for name in ("resnet18", "mobilenet_v2") for importance in ("l1", "bn_scale", "random")),
    ("densenet121", 0.5, "l1"), ("densenet121", 0.1, "bn_scale")])
def test_every_criterion_meets_the_budget(name: str, share: float, importance: str) -> None:
    plan = ts.plan(network(name), PICTURE, macs=share, importance=importance)
    [budget] = plan.budgets
    assert budget.asked - 0.01 * budget.before <= budget.met <= budget.asked == int(share * budget.before)
    assert not plan.notes


def test_uniform_over_a_deep_network() -> None:
    resnet = network("resnet18")
    plan = ts.plan(resnet, PICTURE, macs=0.4, scope="uniform")
    shares = {len(plan.kept[f"{name}.weight"][0]) / layer.out_channels for name, layer in resnet.named_modules()
              if isinstance(layer, nn.Conv2d)}
    assert max(shares) - min(shares) <= 2 / 64


def test_patterns_over_a_deep_network() -> None:
    resnet = network("resnet18")
    slim = ts.apply(resnet, ts.plan(resnet, PICTURE, scope={"layer1.*.conv1": 0.75, "layer2.0.conv1": 0.5}))
    assert [slim.layer1[0].conv1.out_channels, slim.layer1[1].conv1.out_channels] == [48, 48]
    assert slim.layer2[0].conv1.out_channels == 64
    assert slim.layer2[1].conv1.out_channels == 128  # neither named nor under a budget
    plan = ts.plan(resnet, PICTURE, macs=0.9, only=["layer4.*.conv1"])
    assert {name for name, dims in plan.kept.items() if name.endswith("conv1.weight") and 0 in dims} == {
        "layer4.0.conv1.weight", "layer4.1.conv1.weight"}


@pytest.mark.parametrize("round_to", [4, 8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "shufflenet_v2_x1_0"])
def test_widths_of_deep_networks_are_multiples(name: str, round_to: int) -> None:
    model = network(name)
    slim = ts.apply(model, ts.plan(model, PICTURE, macs=0.5, round_to=round_to))
    for (layer, before), after in zip(model.named_modules(), slim.modules(), strict=True):
        if isinstance(before, nn.Conv2d) and before.out_channels != after.out_channels:
            assert after.out_channels % round_to == 0, layer


def test_fire_modules_without_their_concatenations_are_a_budget_out_of_reach() -> None:
    plan = ts.plan(network("squeezenet1_1"), PICTURE, macs=0.5, shortcuts=False, strict=False)
    [budget] = plan.budgets
    assert budget.met > budget.asked
    [note] = plan.notes
    assert note.startswith(f"macs: asked for at most {budget.asked:,}, which can't be met; the nearest feasible "
                           "budget is ")
    assert "the protected channels, those that are left alone, cost " in note


@pytest.mark.parametrize(("options", "why"), [
    ({"round_to": 32}, "rounding (round_to=, or rows that lose equally many) stops it, single channels would leave "),
    ({"min_channels": 32}, "the minimum width of the groups (2 channels, min_channels=, min_kept= or a share by"),
    ({"min_kept": 0.5, "round_to": 8}, "the minimum width"),
    ({"exclude": ["3"]}, "the minimum width"), ({"exclude": ["3", "5"]}, "the protected channels, those that are left"),
    ({"scope": {"3": 0.9, "5": 0.9}}, "the minimum width")])
def test_what_stops_a_budget_is_named(options: dict[str, Any], why: str) -> None:
    model = chain()
    plan = ts.plan(model, X, macs=0.02, **options, strict=False)
    [budget], [note] = plan.budgets, plan.notes
    assert budget.met > budget.asked
    assert why in note
    assert feasible(note)[0] == budget.met == counted_macs(ts.apply(model, plan), X)


def test_rows_that_rounding_holds_are_named_and_single_steps_are_what_they_would_leave() -> None:
    model = nn.Sequential(conv(3, 32), conv(32, 32, groups=4), conv(32, 4))
    [note] = ts.plan(model, X, params=0.4, round_to=32, strict=False).notes
    left = int(note.rpartition(" ")[2].replace(",", ""))
    assert "rounding (round_to=" in note
    assert left <= ts.plan(model, X, params=1, strict=False).budgets[0].met <= 1.01 * left


def test_nothing_goes_for_a_budget_that_it_can_not_serve() -> None:
    """A map that stays is the peak of memory: what is not alive then need not go."""
    model = nn.Sequential(conv(3, 16, 1), nn.ReLU(), nn.AvgPool2d(8), conv(16, 64), nn.ReLU(), conv(64, 8))
    plan = ts.plan(model, X, memory=0.01, exclude=["0"], strict=False)
    assert plan.budgets[0].met > plan.budgets[0].asked
    assert plan.kept == {}
    both = ts.plan(model, X, memory=0.01, params=0.5, exclude=["0"], strict=False)
    assert both.budgets[0].met <= both.budgets[0].asked
    assert both.budgets[0].met > 0.48 * both.budgets[0].before


# Requests that are wrong


@pytest.mark.parametrize("value", [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf"), True, "half", None, [0.5]])
def test_a_budget_that_is_neither_share_nor_count_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match=r"wanted a (share in \(0, 1\]|float in \(0, 1\])|nothing was asked"):
        ts.plan(chain(), X, macs=value)


@pytest.mark.parametrize(("value", "total", "expected"), [
    (1.0, 100, 100), (0.5, 101, 50), (0.25, 10, 2), (1, 100, 1), (7, 3, 7), (1e-9, 100, 0)])
def test_as_count(value: float, total: int, expected: int) -> None:
    assert as_count(value, total, "macs") == expected


@pytest.mark.parametrize(("options", "message"), [
    ({}, "nothing was asked; give macs="),
    ({"macs": 0.5, "scope": "local"}, "scope: got 'local', wanted 'global', 'uniform' or a dict"),
    ({"scope": {"0": 0.0}}, "scope: '0': 0.0 is no share"), ({"scope": {"0": 2}}, "'0': 2 is no share"),
    ({"scope": {"nothing.*": 0.5}}, r"scope: no layer that makes channels matches 'nothing\.\*'; layers are named"),
    ({"macs": 0.5, "only": ["layer9.*"]}, "only: no layer that makes channels matches"),
    ({"macs": 0.5, "exclude": ["layer9.*"]}, "exclude: no layer that makes channels matches"),
    ({"macs": 0.5, "only": "0"}, "only: got '0', wanted a sequence of layer-name patterns"),
    ({"macs": 0.5, "exclude": [3]}, "exclude: got"),
    ({"macs": 0.5, "round_to": 0}, "round_to: got 0, wanted an int of at least 1"),
    ({"macs": 0.5, "round_to": 1.5}, "round_to: got 1.5"),
    ({"macs": 0.5, "min_channels": -1}, "min_channels: got -1"),
    ({"macs": 0.5, "min_kept": 1.5}, r"min_kept: got 1.5, wanted a number in \[0, 1\]"),
    ({"macs": 0.5, "min_kept": -0.1}, "min_kept: got -0.1"),
    ({"macs": 0.5, "min_kept": "half"}, "min_kept: got 'half'"),
    ({"scope": {"0": 0.2}, "min_kept": 0.3}, "scope: '0': 0.2 is below min_kept=0.3"),
])
def test_wrong_requests_say_what_is_wanted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ts.plan(chain(), X, **options)


def test_a_model_that_fails_is_a_trace_error() -> None:
    with pytest.raises(TraceError, match="`0` failed"):
        ts.plan(chain(), torch.randn(1, 4, 16, 16), macs=0.5)


# The parts


def test_a_cost_is_a_sum_of_products_of_shares() -> None:
    a, b = np.array([0, 1, 2, 3]), np.array([4, 5])
    cost = CostModel([CostTerm(100, (a, b)), CostTerm(10, (b,)), CostTerm(7, ())])
    shares = np.ones(6)
    assert cost.total == cost(shares) == 117
    shares[[1, 5]] = 0
    assert cost(shares) == 100 * 3 // 4 // 2 + 5 + 7 + 1  # 37.5 is rounded to 38
    shares[:4] = 0.5
    assert cost(shares) == 25 + 5 + 7
    assert CostModel([])(shares) == 0


def test_patterns() -> None:
    assert all_match(["layer1.0.conv1"], ["layer1.*"])
    assert all_match(["a", "b"], ["a", "b"])
    assert not all_match(["a", "b"], ["a"])
    assert not all_match(["Layer1"], ["layer1"])
    assert not all_match(["a"], [])


def test_settings_are_on_record() -> None:
    plan = ts.plan(chain(), X, macs=0.9, importance="random", scope="uniform", shortcuts=False, round_to=2,
                   min_channels=3, only=["0", "3"], exclude=["3"], seed=7)
    assert plan.settings == {"importance": "random", "scope": "uniform", "shortcuts": False, "round_to": 2,
                             "min_channels": 3, "min_kept": 0.0, "only": ["0", "3"], "exclude": ["3"],
                             "allow_approximate": False, "whole_groups": False, "seed": 7, "shares_of": "today"}


def test_plans_are_the_same_every_time() -> None:
    model = residual()
    assert ts.plan(model, X, macs=0.5) == ts.plan(model, X, macs=0.5)
    assert ts.plan(model, X, macs=0.5, importance="random", seed=1) != ts.plan(model, X, macs=0.5, importance="random")


def test_scores_belong_to_the_channels_they_name() -> None:
    """A group's channels are numbered as its first layer makes them."""
    model = residual()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()

    def importance(group: ChannelGroup) -> list[float]:
        return [float(order[i]) for i in range(40)] if group.name == "stem" else [1e6] * group.channels

    plan = ts.plan(model, X, scope={"[sb]*": 0.5}, importance=importance)
    assert plan.kept["stem.weight"][0] == tuple(i for i in range(40) if order[i] >= 20)
