"""Every architecture through everything: planned, cut, proven twice over, run, trained, counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchslim
from battery.networks import SIDES
from helpers import check_training, count, counted_macs, in_turn, oracle_error, random_statistics
from torchslim.surgery.plans import Plan

SETTINGS = [(0.5, True, "l2", 0), (0.25, True, "random", 1), (0.5, False, "random", 2), (0.25, False, "l2", 3)]
# The settings in turn: each meets four networks or five, and `benchmarks/coverage.py` cuts every network.
CASES = [(name, *SETTINGS[place % len(SETTINGS)]) for place, name in enumerate(SIDES)]
PROVEN_ON = {"inception_v3": 112}  # its large pictures take their time


def build(name: str, seed: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    model = torchslim.create_model(f"torchvision:{name}", num_classes=10)
    if name.startswith("vgg"):
        # The head as it is, and a hundred million weights fewer: flattened maps of 49 pixels, a hidden layer.
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    inputs = torch.randn(1, 3, SIDES[name], SIDES[name])
    return random_statistics(model, seed).eval(), inputs


# What a smaller network of the same kind shows, here or in `test_families.py`.
NIGHTLY = {"vgg16_bn", "resnet50", "mobilenet_v3_small", "efficientnet_b0", "inception_v3", "shufflenet_v2_x1_0",
           "regnet_y_400mf", "mnasnet0_5", "densenet121"}


@pytest.mark.parametrize(("name", "share", "shortcuts", "importance", "seed"), in_turn(
    CASES, [case for case in CASES if case[0] not in NIGHTLY]))
def test_a_cut_is_exact_runs_trains_and_costs_what_was_foretold(name: str, share: float, shortcuts: bool,
                                                               importance: str, seed: int) -> None:
    model, inputs = build(name, seed)
    plan = torchslim.plan(model, inputs, macs=share, shortcuts=shortcuts, importance=importance, seed=seed,
                          strict=False)
    slim = torchslim.apply(model, plan)

    proof = inputs[..., :PROVEN_ON.get(name, 999), :PROVEN_ON.get(name, 999)]
    assert torchslim.verify(model, slim, plan, proof) < 1e-10
    assert oracle_error(model, slim, plan, proof) < 1e-10
    assert Plan.from_json(plan.to_json()) == plan

    (budget,) = plan.budgets
    assert budget.met == plan.predicted["macs"] == counted_macs(slim, inputs) == torchslim.profile(slim, inputs).macs
    assert plan.predicted["params"] == count(slim) == torchslim.profile(slim, inputs).params
    assert budget.before == counted_macs(model, inputs)
    assert budget.asked == int(budget.before * share)
    assert budget.met <= budget.asked or any(note.startswith("macs: asked for") for note in plan.notes)
    if shortcuts:
        assert 0.97 * budget.asked <= budget.met <= budget.asked

    read_before = check_training(model, torch.cat([inputs, -inputs]))
    assert check_training(slim, torch.cat([inputs, -inputs])) == read_before


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "resnext50_32x4d"])
def test_a_plan_from_json_cuts_the_same_network(name: str) -> None:
    model, inputs = build(name, 0)
    plan = torchslim.plan(model, inputs, macs=0.5)
    again = torchslim.apply(model, Plan.from_json(plan.to_json()))
    slim = torchslim.apply(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(slim.state_dict().values(), again.state_dict().values(), strict=True))
    assert torchslim.plan(model, inputs, macs=0.5) == plan


def test_both_rows_of_a_shuffle_choose_channels_of_their_own() -> None:
    """Tying the n-th channels of the halves would be valid too, and would waste freedom."""
    model, inputs = build("shufflenet_v2_x1_0", 0)
    plan = torchslim.plan(model, inputs, macs=0.5, importance="random")
    left, right = (plan.kept[f"stage2.0.{branch}.weight"][0] for branch in ("branch1.2", "branch2.5"))
    assert len(left) == len(right)
    assert set(left) != set(right)


def test_auxiliary_heads_are_cut_with_the_trunk() -> None:
    model, inputs = build("inception_v3", 0)
    plan = torchslim.plan(model, inputs, macs=0.4)
    assert 1 in plan.kept["AuxLogits.conv0.conv.weight"]
    slim = torchslim.apply(model, plan).train()
    main, auxiliary = slim(torch.cat([inputs, -inputs]))
    assert main.shape == auxiliary.shape == (2, 10)


def test_heads_that_no_run_reached_are_named() -> None:
    model = random_statistics(torchslim.create_model("inception_v3", num_classes=10)).eval()
    plan = torchslim.plan(model, torch.randn(1, 3, 112, 112), macs=0.5)  # too small for the auxiliary head
    assert any("AuxLogits" in note for note in plan.notes)
    assert not any(name.startswith("AuxLogits") for name in plan.kept)
