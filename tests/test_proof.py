"""The proof can fail: whatever is wrong on purpose shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import oracle_error, random_statistics
from torchslim.errors import ProofError
from torchslim.plans import Plan
from torchslim.proof import differences, silence

NETWORKS = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "resnext50_32x4d", "squeezenet1_1"]


def pruned(name: str) -> tuple[nn.Module, nn.Module, Plan, Tensor]:
    model = random_statistics(torchslim.create_model(name, num_classes=10)).eval()
    inputs = torch.randn(1, 3, 64, 64)
    slim, plan = torchslim.prune(model, inputs, macs=0.5)
    return model, slim, plan, inputs


def reading(plan: Plan) -> list[str]:
    """Weights of plain convolutions of which the plan cuts the inputs."""
    return [name for name, dim in plan.readers if dim == 1 and name not in plan.grouped]


@pytest.mark.parametrize("name", NETWORKS)
def test_swapping_two_kept_channels_shows(name: str) -> None:
    model, slim, plan, inputs = pruned(name)
    assert torchslim.verify(model, slim, plan, inputs) < 1e-12
    weights = dict(slim.named_parameters())
    for victim in (reading(plan)[0], reading(plan)[-1]):
        with torch.no_grad():
            weights[victim][:, [0, 1]] = weights[victim][:, [1, 0]]
        assert torchslim.verify(model, slim, plan, inputs) > 1e-5, victim
        assert oracle_error(model, slim, plan, inputs) > 1e-9, victim
        with torch.no_grad():
            weights[victim][:, [0, 1]] = weights[victim][:, [1, 0]]


def test_a_wrong_channel_of_a_norm_shows_at_the_norm() -> None:
    model, slim, plan, inputs = pruned("resnet18")
    with torch.no_grad():
        slim.layer1[0].bn1.running_mean.copy_(slim.layer1[0].bn1.running_mean.flip(0))
    wrong = [d.where for d in differences(model, slim, plan, inputs) if d.error > 1e-6]
    assert wrong[0] == "layer1.0.bn1"
    assert "the output" in wrong


def test_a_reader_that_was_not_silenced_shows() -> None:
    model, slim, plan, inputs = pruned("resnet18")
    fewer = Plan(kept=plan.kept, readers=plan.readers[1:], grouped=plan.grouped, mends=plan.mends)
    assert torchslim.verify(model, slim, fewer, inputs) > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(value: float) -> None:
    model, slim, plan, inputs = pruned("resnet18")
    with torch.no_grad():
        slim.conv1.weight[0, 0, 0, 0] = value
    with pytest.raises(ProofError, match="not finite"):
        torchslim.verify(model, slim, plan, inputs)


def test_outputs_of_another_shape_are_an_error() -> None:
    model, slim, plan, inputs = pruned("resnet18")
    slim.fc = nn.Linear(slim.fc.in_features, 7)
    with pytest.raises(ProofError, match=r"`fc` gives \(1, 7\)"):
        torchslim.verify(model, slim, plan, inputs)


def test_prune_refuses_what_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    def clumsy(model: nn.Module, plan: Plan) -> nn.Module:
        slim = torchslim.apply(model, plan)
        with torch.no_grad():
            slim.layer2[0].conv1.weight.mul_(1.01)
        return slim

    monkeypatch.setattr("torchslim.pruning.apply", clumsy)
    model = random_statistics(torchslim.create_model("resnet18", num_classes=10)).eval()
    with pytest.raises(ProofError, match=r"`layer2\.0\.conv1` of the slim network differs .* exclude="):
        torchslim.prune(model, torch.randn(1, 3, 64, 64), macs=0.5)


def test_verifying_leaves_both_models_as_they_were() -> None:
    model, slim, plan, inputs = pruned("mobilenet_v2")
    slim.train()
    before = [t.clone() for m in (model, slim) for t in m.state_dict().values()]
    torchslim.verify(model, slim, plan, inputs)
    after = [t for m in (model, slim) for t in m.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert slim.training
    assert not any(m._forward_hooks for m in (*model.modules(), *slim.modules()))


def test_silencing_a_grouped_convolution_counts_inputs_over_all_groups() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1, groups=4, bias=False))
    plan = Plan(kept={"0.weight": {1: (0, 3, 5, 6)}}, readers=(("0.weight", 1),), grouped={"0.weight": (4, 4)})
    silence(model, plan)
    zero = (model[0].weight == 0).flatten(1)
    # Groups of two filters reading two channels: 1, 2, 4 and 7 are gone, which are places 1, 0, 0 and 1.
    assert zero.tolist() == [[False, True]] * 2 + [[True, False]] * 4 + [[False, True]] * 2
