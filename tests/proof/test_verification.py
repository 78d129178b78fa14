"""The proof can fail: whatever is wrong on purpose shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import in_turn, oracle_error, random_statistics
from torchslim.errors import PlanError, ProofError
from torchslim.proof.verification import differences, silence
from torchslim.surgery.plans import Plan

NETWORKS = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "resnext50_32x4d", "squeezenet1_1"]


def pruned(name: str) -> tuple[nn.Module, nn.Module, Plan, Tensor]:
    model = random_statistics(torchslim.create_model(f"torchvision:{name}", num_classes=10)).eval()
    inputs = torch.randn(1, 3, 64, 64)
    slim, plan = torchslim.prune(model, inputs, macs=0.5)
    return model, slim, plan, inputs


def reading(plan: Plan) -> list[str]:
    """Weights of plain convolutions of which the plan cuts the inputs."""
    return [name for name, dim in plan.readers if dim == 1 and name not in plan.grouped]


@pytest.mark.parametrize("name", in_turn(NETWORKS, ("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")))
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
    fewer = Plan(kept=plan.kept, readers=plan.readers[1:], grouped=plan.grouped,
                 attribute_updates=plan.attribute_updates)
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
    with pytest.raises(ProofError, match=r"\(1, 7\)"):
        torchslim.verify(model, slim, plan, inputs)


def test_prune_refuses_what_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    def clumsy(model: nn.Module, plan: Plan) -> nn.Module:
        slim = torchslim.apply(model, plan)
        with torch.no_grad():
            slim.layer2[0].conv1.weight.mul_(1.01)
        return slim

    monkeypatch.setattr("torchslim.planning.pruning.apply", clumsy)
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


# Every tensor of a small network of many kinds


class Kinds(nn.Module):
    """Dense, depthwise, grouped and transposed convolutions, norms, a gate, a sum, a concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1, groups=2)
        self.down, self.gate = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.up, self.side = nn.ConvTranspose2d(12, 6, 2, stride=2), nn.Conv2d(3, 6, 1)
        self.act, self.hidden, self.norm = nn.PReLU(12), nn.Linear(12 * 16, 10), nn.BatchNorm1d(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.stem(x)).relu()
        y = self.grouped(y + self.depthwise(y))
        y = y * self.gate(self.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = nn.functional.avg_pool2d(self.up(y), 2)
        y = self.act(torch.cat([y, self.side(x)], 1))
        return self.head(self.norm(self.hidden(nn.functional.avg_pool2d(y, 2).flatten(1))).sigmoid())


# Large, so that every channel is now above zero and now below.
X = 5 * torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def kinds() -> tuple[nn.Module, nn.Module, Plan]:
    model = random_statistics(Kinds(), seed=5).double().eval()
    with torch.no_grad():
        model.act.weight.copy_(torch.linspace(-3, 3, 12))
    plan = torchslim.plan(model, X, params=0.55, scope="uniform", importance="random")
    return model, torchslim.apply(model, plan), plan


def cut_dims() -> list[tuple[str, int]]:
    """Tensors and dimensions that the plan cuts; a grouped convolution's inputs lie in dimension 1 a group."""
    return [(name, dim) for name, dims in kinds()[2].kept.items() for dim in dims]


CUT = cut_dims()


def test_every_layer_of_the_small_network_is_cut() -> None:
    assert {name.partition(".")[0] for name, _ in CUT} == {name for name, _ in Kinds().named_children()}


@pytest.mark.parametrize(("name", "dim"), CUT)
def test_two_channels_swapped_in_any_one_tensor_show(name: str, dim: int) -> None:
    model, slim, plan = kinds()
    assert torchslim.verify(model, slim, plan, X) < 1e-12
    tensor = {**dict(slim.named_parameters()), **dict(slim.named_buffers())}[name]
    size = tensor.shape[dim]
    order = torch.arange(size)
    order[0], order[size - 1] = size - 1, 0
    with torch.no_grad():
        tensor.copy_(tensor.index_select(dim, order))
    assert torchslim.verify(model, slim, plan, X) > 1e-3
    assert oracle_error(model, slim, plan, X) > 1e-9


@pytest.mark.parametrize(("name", "dim"), CUT)
def test_a_wrong_index_in_any_one_place_of_the_plan_shows(name: str, dim: int) -> None:
    model, _, plan = kinds()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    index = plan.kept[name][dim]
    groups = plan.grouped.get(name, (1, 1))[0]
    size = state[name].shape[dim] * (groups if dim == 1 else 1)
    block = size // groups  # a grouped convolution must keep equally many of each group
    wrong = next(i for i in range(block) if i not in index)
    changed = (wrong, *(i for i in index if i != index[0]))
    other = Plan(kept={**plan.kept, name: {**plan.kept[name], dim: changed}}, readers=plan.readers,
                 grouped=plan.grouped, attribute_updates=plan.attribute_updates)
    assert torchslim.verify(model, torchslim.apply(model, other), plan, X) > 1e-4


@pytest.mark.parametrize("name", sorted(name for name, _ in Kinds().named_parameters()))
def test_a_weight_that_was_changed_shows(name: str) -> None:
    model, slim, plan = kinds()
    with torch.no_grad():
        dict(slim.named_parameters())[name].flatten()[0].add_(0.1)
    assert torchslim.verify(model, slim, plan, X) > 1e-6


@pytest.mark.parametrize("name", ["bn.running_mean", "bn.running_var", "norm.running_mean", "norm.running_var"])
def test_a_statistic_that_was_changed_shows(name: str) -> None:
    model, slim, plan = kinds()
    with torch.no_grad():
        dict(slim.named_buffers())[name][0] += 0.1
    assert torchslim.verify(model, slim, plan, X) > 1e-6


def test_an_activation_that_was_changed_shows() -> None:
    model, slim, plan = kinds()
    slim.norm.eps = 0.5
    assert torchslim.verify(model, slim, plan, X) > 1e-6


def test_other_inputs_and_modes_are_as_good() -> None:
    model, slim, plan = kinds()
    for x in (X, -3 * X, X[:1], X.float(), torch.zeros_like(X)):
        assert torchslim.verify(model.train(), slim.train(), plan, x) < 1e-12
    assert torchslim.verify(nn.DataParallel(model), nn.DataParallel(slim), plan, X) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_are_proven_in_wide_ones(dtype: torch.dtype) -> None:
    model = random_statistics(Kinds(), seed=5).to(dtype)
    slim, plan = torchslim.prune(model, X.to(dtype), macs=0.5)
    assert torchslim.verify(model, slim, plan, X.to(dtype)) < 1e-12
    assert {p.dtype for p in slim.parameters()} == {dtype}


def test_outputs_of_any_form_are_compared() -> None:
    class Forms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> dict[str, object]:
            y = self.a(x).relu()
            return {"one": self.b(y), "more": [self.c(y).mean(), (y.argmax(1) * 0, 3, None)]}

    model = random_statistics(Forms()).double()
    plan = torchslim.plan(model, X, macs=0.6, strict=False)
    slim = torchslim.apply(model, plan)
    assert torchslim.verify(model, slim, plan, X) < 1e-12


def test_a_transposed_convolution_is_compared_along_its_second_dimension() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2), nn.Conv2d(8, 2, 1)).double()
    random_statistics(model)
    for share in (0.8, 0.5, 0.3):
        slim, plan = torchslim.prune(model, X, macs=share, importance="random")
        assert plan.kept["1.weight"].keys() == {0, 1}
        assert torchslim.verify(model, slim, plan, X) < 1e-12


def test_tied_layers_are_compared_each() -> None:
    model = random_statistics(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1),
                                            nn.Conv2d(8, 2, 1))).double()
    model[3].weight = model[1].weight
    slim, plan = torchslim.prune(model, X, macs=0.5)
    assert {d.where for d in differences(model, slim, plan, X)} == {"0", "1", "3", "4", "the output"}
    with torch.no_grad():
        slim[3].bias[0] += 1
    assert max(differences(model, slim, plan, X), key=lambda d: d.error).where in ("3", "4", "the output")


def test_a_plan_of_another_model_is_refused() -> None:
    _, slim, plan = kinds()
    with pytest.raises(PlanError, match=r"`\w+\.weight`: the plan cuts this tensor and the model has none"):
        torchslim.verify(nn.Sequential(nn.Conv2d(3, 8, 1)), slim, plan, X)


def test_a_slim_network_that_runs_a_layer_more_often_is_refused() -> None:
    model, slim, plan = kinds()
    slim.bn = nn.Sequential(slim.bn)
    with pytest.raises(ProofError, match=r"`bn\.0` runs more often"):
        torchslim.verify(model, slim, plan, X)
