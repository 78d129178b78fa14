"""An optimizer's state goes through the cut with its parameters, and the next step is the step that silencing gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import torchslim as ts
from helpers import bits, random_statistics, silenced_oracle
from torchslim.errors import PlanError, RequestError
from torchslim.surgery.plans import Plan

X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": partial(optim.SGD, lr=0.01),
    "momentum": partial(optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": partial(optim.Adam, lr=0.01, amsgrad=True),
    "AdamW": partial(optim.AdamW, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": partial(optim.Adagrad, lr=0.01),
    "Adadelta": optim.Adadelta, "Adamax": optim.Adamax, "RAdam": optim.RAdam,
    "Rprop": optim.Rprop,
}


def network() -> nn.Sequential:
    """Plain, grouped, depthwise and transposed convolutions, norms, and a linear layer behind flattened maps."""
    return random_statistics(nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ConvTranspose2d(16, 8, 2, 2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))).double().eval()


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def part(tensor: Tensor, name: str, plan: Plan) -> Tensor:
    """What the plan keeps of a tensor, by indexing alone."""
    dims = plan.kept.get(name, {})
    if name in plan.grouped:
        groups = plan.grouped[name][0]
        rows, width = tensor.shape[0] // groups, tensor.shape[1]
        of_group = {g: [i % width for i in dims[1] if i // width == g] for g in range(groups)}
        return torch.stack([tensor[out, of_group[out // rows]] for out in dims[0]])
    for dim, index in dims.items():
        tensor = tensor[(slice(None),) * dim + (list(index),)]
    return tensor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_that_of_the_silenced_original(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    plan = ts.plan(model, X, macs=0.5)
    assert set(plan.grouped) == {"3.weight"}
    slim = ts.apply(model, plan)
    carried = ts.carry_optimizer(optimizer, model, slim, plan)

    silenced = silenced_oracle(model, plan)
    expected = OPTIMIZERS[name](silenced.parameters())
    expected.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(silenced, expected, 1)
    train(slim, carried, 1)
    for key, parameter in slim.named_parameters():
        wanted = part(silenced.get_parameter(key), key, plan)
        assert torch.allclose(parameter, wanted, rtol=1e-12, atol=1e-14), key
        assert not torch.equal(parameter, part(model.get_parameter(key), key, plan)), key  # it did step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_cut_like_its_parameter_and_steps_are_kept(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    plan = ts.plan(model, X, macs=0.5)
    slim = ts.apply(model, plan)
    carried = ts.carry_optimizer(optimizer, model, slim, plan)
    assert type(carried) is type(optimizer)
    assert [id(p) for p in carried.param_groups[0]["params"]] == [id(p) for p in slim.parameters()]
    for key, parameter in model.named_parameters():
        own = carried.state.get(slim.get_parameter(key), {})
        assert own.keys() == optimizer.state.get(parameter, {}).keys()
        for entry, item in optimizer.state.get(parameter, {}).items():
            if isinstance(item, Tensor):
                wanted = part(item, key, plan) if item.dim() else item
                assert bits(own[entry]) == bits(wanted), (key, entry)
                assert own[entry].data_ptr() != item.data_ptr()
            else:
                assert own[entry] == item
    assert str(optimizer.state_dict()) == str(before)  # left as it was


def test_groups_keep_their_order_and_settings() -> None:
    model = network()
    norms = [*model[1].parameters(), *model[4].parameters()]
    others = [p for p in model.parameters() if not any(p is norm for norm in norms)]
    optimizer = optim.AdamW([{"params": others, "lr": torch.tensor(0.02), "weight_decay": 0.1},
                             {"params": norms, "betas": (0.5, 0.9)}], lr=0.01, capturable=False, foreach=False)
    optim.lr_scheduler.StepLR(optimizer, 3)
    plan = ts.plan(model, X, macs=0.5)
    slim = ts.apply(model, plan)
    carried = ts.carry_optimizer(optimizer, model, slim, plan)
    for old, new in zip(optimizer.param_groups, carried.param_groups, strict=True):
        assert {key: value for key, value in old.items() if key != "params"} == {
            key: value for key, value in new.items() if key != "params"}
        own = {id(p): key for key, p in slim.named_parameters()}
        first = {id(p): key for key, p in model.named_parameters()}
        assert [own[id(p)] for p in new["params"]] == [first[id(p)] for p in old["params"]]
    assert carried.param_groups[0]["lr"] is not optimizer.param_groups[0]["lr"]
    train(slim, carried, 1)
    assert all(group["params"][0].grad is not None for group in carried.param_groups)
    assert all(p.grad is None for p in model.parameters())


def test_some_parameters_and_a_wrapped_model() -> None:
    model = network()
    optimizer = optim.SGD(model[3].parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    plan = ts.plan(model, X, macs=0.5)
    slim = ts.apply(model, plan)
    carried = ts.carry_optimizer(optimizer, nn.DataParallel(model), nn.DataParallel(slim), plan)
    assert [id(p) for p in carried.param_groups[0]["params"]] == [id(p) for p in slim[3].parameters()]


def test_memory_format_is_kept() -> None:
    model = network().to(memory_format=torch.channels_last)
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 1)
    plan = ts.plan(model, X, macs=0.5)
    slim = ts.apply(model, plan)
    carried = ts.carry_optimizer(optimizer, model, slim, plan)
    assert {p.stride() == carried.state[p]["exp_avg"].stride() for p in slim.parameters()} == {True}


class Remembering(optim.SGD):
    """An optimizer with something of its own."""

    def __init__(self, parameters: Any, own: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.own = own


def test_plain_settings_of_a_class_of_ones_own_are_kept() -> None:
    model = network()
    plan = ts.plan(model, X, macs=0.5)
    slim = ts.apply(model, plan)
    assert ts.carry_optimizer(Remembering(model.parameters(), 3), model, slim, plan).own == 3


@pytest.mark.parametrize(("make", "message"), [
    (optim.Adafactor, r"the Adafactor's `row_var` of `0.weight` has shape \(16, 3, 3, 1\) where the parameter has "
                      r"\(16, 3, 3, 3\), so that nothing says which of it belongs to the channels that stay; make"),
    (lambda p: Remembering(p, {"size": 3}), "Remembering keeps `own` beside its state by parameter; make a new"),
], ids=["factored", "beside"])
def test_state_that_does_not_go_by_elements_is_refused(make: Callable[..., optim.Optimizer], message: str) -> None:
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 1)
    plan = ts.plan(model, X, macs=0.5)
    with pytest.raises(RequestError, match=message):
        ts.carry_optimizer(optimizer, model, ts.apply(model, plan), plan)


def test_an_optimizer_over_all_parameters_at_once_is_refused() -> None:
    model = network()
    plan = ts.plan(model, X, macs=0.5)
    with pytest.raises(RequestError, match="LBFGS keeps `_params` beside its state by parameter"):
        ts.carry_optimizer(optim.LBFGS(model.parameters()), model, ts.apply(model, plan), plan)


def test_what_does_not_belong_together_is_told() -> None:
    model, other = network(), network()
    plan = ts.plan(model, X, macs=0.5)
    slim = ts.apply(model, plan)
    optimizer = optim.Adam(model.parameters())
    with pytest.raises(RequestError, match=r"group 0 of the Adam holds a tensor of shape \(16, 3, 3, 3\) that is no "
                                           "parameter of the model; give the model that the optimizer trains"):
        ts.carry_optimizer(optimizer, other, slim, plan)
    with pytest.raises(PlanError, match=r"`0.weight` must have shape .* and the slim model has one of shape \(16, 3"):
        ts.carry_optimizer(optimizer, model, other, plan)
    with pytest.raises(PlanError, match="the slim model has no parameter of that name"):
        ts.carry_optimizer(optimizer, model, nn.Flatten(), plan)
