"""Optimizer state after a cut: it is cut like the parameters that it belongs to, so that training can continue."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torchslim.errors import PlanError, RequestError
from torchslim.surgery.cutting import cut_tensor
from torchslim.surgery.plans import Plan
from torchslim.utils.inputs import tensors_in, unwrap


def carry_optimizer(optimizer: Optimizer, model: nn.Module, slim: nn.Module, plan: Plan) -> Optimizer:
    """An optimizer of the same class over the slim model's parameters, with the state of the channels that are kept.

    Parameter groups keep their order and their settings (a learning rate for each, say). State of a parameter's shape
    (momentum, Adam's averages) is cut at the indices at which the parameter was cut; counts of steps are kept. The
    given optimizer is left as it was. Its hooks and learning-rate schedulers are not carried over: make a new scheduler
    on the optimizer that this returns.

    Args:
        optimizer: over parameters of `model`, all or some: SGD, Adam, AdamW, RMSprop, Adagrad or any other that keeps
            its state element by element.
        model: the original.
        slim: what `apply(model, plan)` gave.
        plan: the plan.

    Raises:
        RequestError: the optimizer holds tensors that are no parameters of `model`; or it keeps state that does not go
            by elements, factored (Adafactor) or over all parameters at once (L-BFGS).
        PlanError: the plan does not lead from `model` to `slim`.
    """
    kind = type(optimizer).__name__
    names = {id(p): name for name, p in reversed(list(unwrap(model).named_parameters(remove_duplicate=False)))}
    slim_parameters = dict(unwrap(slim).named_parameters(remove_duplicate=False))
    memo: dict[int, Any] = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise RequestError(f"carry_optimizer: parameter group {index} of the {kind} holds a tensor of shape "
                                   f"{tuple(parameter.shape)} that is no parameter of the model; give the model that "
                                   "the optimizer trains")
            name = names[id(parameter)]
            memo[id(parameter)] = _slim_parameter(parameter, name, slim_parameters.get(name), plan)
            for key, item in optimizer.state.get(parameter, {}).items():
                _cut_item(item, f"the {kind}'s `{key}` of `{name}`", parameter, name, plan, memo)
    carried = copy.deepcopy(optimizer, memo)
    _carry_other_attributes(optimizer, carried)
    return carried


def _slim_parameter(parameter: Tensor, name: str, candidate: Tensor | None, plan: Plan) -> Tensor:
    shape = list(parameter.shape)
    for dim, index in plan.kept.get(name, {}).items():
        shape[dim] = len(index) // (plan.grouped[name][1] if dim == 1 and name in plan.grouped else 1)
    if candidate is None or list(candidate.shape) != shape:
        has = "no parameter of that name" if candidate is None else f"one of shape {tuple(candidate.shape)}"
        raise PlanError(f"carry_optimizer: `{name}` must have shape {tuple(shape)} by the plan, and the slim model has "
                        f"{has}; give the slim model that `apply(model, plan)` made")
    return candidate


def _cut_item(item: Any, what: str, parameter: Tensor, name: str, plan: Plan, memo: dict[int, Any]) -> None:
    """Put the slim counterpart of one entry of the state into `memo`; unchanged entries need none."""
    dims = plan.kept.get(name)
    if dims is None:
        return
    if isinstance(item, Tensor) and item.shape == parameter.shape:
        memo[id(item)] = cut_tensor(item, name, dims, plan.grouped.get(name)).to(memo[id(parameter)].device)
    elif any(tensor.numel() > 1 for tensor in tensors_in(item)):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(item))
        raise RequestError(f"carry_optimizer: {what} has shape {shapes} where the parameter has "
                           f"{tuple(parameter.shape)}, so that nothing says which of it belongs to the channels that "
                           "stay; make a new optimizer on the slim model's parameters")


def _carry_other_attributes(optimizer: Optimizer, carried: Optimizer) -> None:
    """Copy plain attributes that a copied optimizer lacks; raise for any other, which would be lost."""
    for key, item in vars(optimizer).items():
        if key in vars(carried) or callable(item):  # schedulers wrap `step`
            continue
        if not isinstance(item, bool | int | float | str | None):
            raise RequestError(f"carry_optimizer: {type(optimizer).__name__} keeps `{key}` beside its state by "
                               "parameter; make a new optimizer on the slim model's parameters")
        setattr(carried, key, item)
