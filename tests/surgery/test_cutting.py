"""`apply` cuts a copy and keeps everything else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import bits, random_statistics
from surgery.small import INPUTS, Small, small
from torchslim.errors import PlanError, UnsupportedModel
from torchslim.surgery.plans import AttributeUpdate, Plan


def test_the_original_is_untouched_to_the_bit() -> None:
    model = small()
    before = {name: (id(t), bits(t)) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    widths = (model.stem.out_channels, model.grouped.groups, model.bn.num_features)
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    assert before == {name: (id(t), bits(t)) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    assert (model.stem.out_channels, model.grouped.groups, model.bn.num_features) == widths
    with torch.no_grad():
        for tensor in slim.parameters():
            tensor.zero_()
    assert before == {name: (id(t), bits(t)) for name, t in [*model.named_parameters(), *model.named_buffers()]}


def test_kept_entries_are_those_that_the_plan_names() -> None:
    model = small()
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    slim = torchslim.apply(model, plan)
    assert torch.equal(slim.stem.weight, model.stem.weight[list(plan.kept["stem.weight"][0])])
    assert torch.equal(slim.bn.running_var, model.bn.running_var[list(plan.kept["bn.running_var"][0])])
    outs, ins = plan.kept["grouped.weight"][0], plan.kept["grouped.weight"][1]
    for row, out in enumerate(outs):
        group = row // (len(outs) // 4)
        own = [i for i in ins if i // 4 == group]
        assert out // 4 == group
        assert torch.equal(slim.grouped.weight[row], model.grouped.weight[out, [i % 4 for i in own]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS.to(dtype), macs=0.5))
    assert {t.dtype for t in slim.state_dict().values() if t.is_floating_point()} == {dtype}
    assert slim(INPUTS.to(dtype)).dtype == dtype


def test_memory_format_is_kept() -> None:
    model = small().to(memory_format=torch.channels_last)
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    assert slim.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert not slim.stem.weight.is_contiguous()
    assert torchslim.apply(small(), torchslim.plan(small(), INPUTS, macs=0.5)).stem.weight.is_contiguous()


def test_requires_grad_mode_hooks_and_attributes_are_kept() -> None:
    model = small()
    model.stem.weight.requires_grad_(False)
    model.train()
    model.bn.eval()
    called = []
    model.bn.register_forward_hook(lambda *_: called.append("hook"))
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    assert {name: p.requires_grad for name, p in slim.named_parameters()} == {
        name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: m.training for name, m in slim.named_modules()} == {
        name: m.training for name, m in model.named_modules()}
    assert slim.note == model.note
    assert slim.note is not model.note
    called.clear()  # tracing ran it too
    slim(INPUTS)
    assert called == ["hook"]
    assert [type(p) for p in slim.parameters()] == [nn.Parameter] * len(list(model.parameters()))


def test_tied_weights_stay_tied() -> None:
    class Twins(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.grouped(self.stem(x) + self.twin(x)).relu())

    model = Twins().eval()
    model.twin = nn.Conv2d(3, 16, 3, padding=1)
    model.twin.weight = model.stem.weight
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    slim = torchslim.apply(model, plan)
    assert slim.twin.weight is slim.stem.weight
    assert slim.twin.out_channels == slim.stem.out_channels < 16
    assert slim.twin.bias is not slim.stem.bias


def test_wrappers_are_looked_through_and_scripted_models_refused() -> None:
    model = small()
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    wanted = torchslim.apply(model, plan).state_dict()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert torchslim.plan(wrapped, INPUTS, macs=0.5) == plan
        slim = torchslim.apply(wrapped, plan)
        assert type(slim) is Small
        assert all(torch.equal(a, b) for a, b in zip(slim.state_dict().values(), wanted.values(), strict=True))
    with pytest.raises(UnsupportedModel, match="scripted"):
        torchslim.apply(torch.jit.trace(model, INPUTS), plan)


@pytest.mark.parametrize(("plan", "message"), [
    (Plan(kept={"body.weight": {0: (0, 1)}}), "`body.weight`: the plan cuts this tensor and the model has none"),
    (Plan(kept={"stem.weight": {0: (0, 16)}}), "`stem.weight`: the plan keeps indices up to 16 of dimension 0, which "
                                               "has 16"),
    (Plan(kept={"stem.weight": {4: (0,)}}), "dimension 4, which has 0"),
    (Plan(kept={"stem.weight": {0: ()}}), "`stem.weight`: the plan keeps indices up to -1"),
    (Plan(kept={}, attribute_updates=(AttributeUpdate("stem", "out_channels", 8, 4),)),
     "`stem.out_channels`: is 16, the plan expects 8"),
    (Plan(kept={}, attribute_updates=(AttributeUpdate("stem", "width", 8, 4),)),
     "`stem.width`: the plan updates this attribute and the model"),
    (Plan(kept={"grouped.weight": {0: (0, 1, 4), 1: (0, 4)}}, grouped={"grouped.weight": (4, 4)}),
     "`grouped.weight`: 3 filters on 2 channels cannot be split into 4 groups"),
    (Plan(kept={"grouped.weight": {0: (0, 4, 8, 9), 1: (0, 4, 8, 12)}}, grouped={"grouped.weight": (4, 4)}),
     "group 3 of the slim convolution would mix the original groups"),
])
def test_a_plan_for_another_model_is_refused_by_name(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        torchslim.apply(small(), plan)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_device_is_kept() -> None:
    model = small().to("meta")
    slim = torchslim.apply(model, torchslim.plan(small(), INPUTS, macs=0.5))
    assert {t.device.type for t in slim.state_dict().values()} == {"meta"}
    assert slim(INPUTS.to("meta")).shape == small()(INPUTS).shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_kept() -> None:
    model, x = small().cuda(), INPUTS.cuda()
    slim, plan = torchslim.prune(model, x, macs=0.5)
    assert {t.device for t in slim.state_dict().values()} == {x.device}
    assert torchslim.verify(model, slim, plan, x) < 1e-12


def test_volumes_keep_their_memory_format() -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv3d(8, 4, 1)).to(memory_format=torch.channels_last_3d)
    slim = torchslim.apply(model, torchslim.plan(model, torch.randn(1, 3, 4, 4, 4), macs=0.5))
    assert slim[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not slim[0].weight.is_contiguous()


def test_gradients_are_not_carried_over() -> None:
    model = small()
    model(INPUTS).sum().backward()
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    assert all(p.grad is None for name, p in slim.named_parameters() if name.startswith(("stem", "grouped")))
    assert all(p.grad is not None for p in model.parameters())


def test_shared_modules_stay_shared() -> None:
    model = small()
    model.same = model.stem
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    assert slim.same is slim.stem
    assert slim.stem is not model.stem


class Holding(Small):
    """Holds a plain tensor for every channel, one for every class, and one that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.arange(16.0).view(16, 1, 1)
        self.anchors = torch.arange(5.0)
        self.learnt = torch.zeros(16, 1, 1, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.stem(x)) - self.mean + self.learnt
        return self.head(self.grouped(y.relu()).relu()) + self.anchors.view(5, 1, 1)


def test_plain_tensor_attributes_are_cut_or_copied() -> None:
    model = random_statistics(Holding()).eval()
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    slim = torchslim.apply(model, plan)
    assert slim.mean.flatten().tolist() == list(map(float, plan.kept["stem.weight"][0]))
    assert plan.kept["mean"] == {0: plan.kept["stem.weight"][0]}
    assert slim.learnt.requires_grad
    assert slim.learnt.is_leaf
    assert torch.equal(slim.anchors, model.anchors)
    assert slim.anchors is not model.anchors
    assert model.mean.shape == (16, 1, 1)
    assert torchslim.verify(model, slim, plan, INPUTS) < 1e-12


def test_a_plan_that_cuts_nothing_gives_an_equal_copy() -> None:
    model = small()
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=1.0))
    assert slim is not model
    assert {name: bits(t) for name, t in slim.state_dict().items()} == {
        name: bits(t) for name, t in model.state_dict().items()}
    assert torch.equal(slim(INPUTS), model(INPUTS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_models_are_refused_by_every_entrance() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.randn(1, 3, 5, 5))
    plan = Plan(kept={})
    for entrance in (lambda: torchslim.apply(scripted, plan), lambda: torchslim.plan(scripted, INPUTS, macs=0.5),
                     lambda: torchslim.profile(scripted, INPUTS), lambda: torchslim.groups(scripted, INPUTS),
                     lambda: torchslim.prune(scripted, INPUTS, macs=0.5),
                     lambda: torchslim.verify(scripted, scripted, plan, INPUTS)):
        with pytest.raises(UnsupportedModel, match="scripted"):
            entrance()


def test_a_model_that_cannot_be_copied_is_refused_by_name() -> None:
    class Locked(Small):
        def __deepcopy__(self, memo: dict[int, object]) -> Small:
            raise TypeError("no copies")

    with pytest.raises(UnsupportedModel, match=r"Locked can't be copied \(no copies\); copy\.deepcopy"):
        torchslim.apply(Locked(), Plan(kept={}))


def test_a_model_compiled_in_place() -> None:
    model = small()
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    model.compile(backend="eager")
    assert torchslim.plan(model, INPUTS, macs=0.5) == plan
    assert torch.equal(torchslim.apply(model, plan)(INPUTS), torchslim.apply(small(), plan)(INPUTS))


def test_slim_models_may_be_cut_again() -> None:
    model = small()
    slim, _ = torchslim.prune(model, INPUTS, macs=0.7)
    slimmer, plan = torchslim.prune(slim, INPUTS, macs=0.5)
    assert plan.budgets[0].before == torchslim.profile(slim, INPUTS).macs
    assert torchslim.verify(slim, slimmer, plan, INPUTS) < 1e-12
