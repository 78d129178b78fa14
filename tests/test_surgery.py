"""`apply` cuts a copy and keeps everything else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import bits, random_statistics
from torchslim.errors import PlanError, UnsupportedModel
from torchslim.plans import Mend, Plan


class Small(nn.Module):
    """A convolution, a grouped one, a norm and a head, with tied biases and a hook on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Conv2d(16, 5, 1)
        self.note = {"kept": ["as", "it", "is"]}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.bn(self.stem(x)).relu()).relu())


INPUTS = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    return random_statistics(Small()).eval()


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
    model = small()
    model.twin = nn.Conv2d(3, 16, 3, padding=1)
    model.twin.weight = model.stem.weight
    model.forward = lambda x: model.head(model.grouped(model.stem(x) + model.twin(x)).relu())
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
    (Plan(kept={}, mends=(Mend("stem", "out_channels", 8, 4),)), "`stem.out_channels`: is 16, the plan expects 8"),
    (Plan(kept={}, mends=(Mend("stem", "width", 8, 4),)), "`stem.width`: the plan mends this attribute and the model"),
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
