"""The proof: removing channels must equal silencing them.

The original, with the weights of every reader of a removed channel set to zero, computes what the slim network
computes: a correct cut agrees to rounding. Both sides run as float64 copies, in eval mode, on the given inputs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.calling import Inputs, arguments, map_tensors, tensors_in, unwrap
from torchslim.errors import PlanError, ProofError
from torchslim.plans import Plan
from torchslim.surgery import tensors_of


def verify(model: nn.Module, slim: nn.Module, plan: Plan, inputs: Inputs) -> float:
    """The largest relative error of `slim` against the silenced `model`, over all outputs.

    The error of an output is its largest absolute difference, over the largest absolute value of the silenced
    original's. The proof holds for the network as cut: fine-tuning changes the weights, and with them the outputs.

    Args:
        model: the original, untouched since the plan was made.
        slim: what `apply(model, plan)` gave.
        plan: the plan.
        inputs: as given to `plan`; other values and other image sizes are as good.

    Raises:
        ProofError: the outputs differ in number or shape, or are not finite.
        PlanError: the plan names tensors that the model does not have.
    """
    silenced = silence(copy.deepcopy(unwrap(model)).double(), plan)
    expected = _outputs(silenced, inputs)
    found = _outputs(copy.deepcopy(unwrap(slim)).double(), inputs)
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
        raise ProofError(f"verify: the slim network's outputs have shapes {[tuple(t.shape) for t in found]}, the "
                         f"original's {[tuple(t.shape) for t in expected]}")
    return max((_error(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def silence(model: nn.Module, plan: Plan) -> nn.Module:
    """Set, in place, every weight to zero that reads a removed channel.

    Raises:
        PlanError: the plan names tensors that the model does not have.
    """
    state = tensors_of(model)
    with torch.no_grad():
        for name, dim in plan.readers:
            if name not in state:
                raise PlanError(f"`{name}`: the plan cuts this tensor and the model has none of that name; "
                                "verify against the model that the plan was made for")
            weight = state[name]
            groups = plan.grouped.get(name, (1, 1))[0] if dim == 1 else 1
            gone = torch.ones(weight.shape[dim] * groups, dtype=torch.bool, device=weight.device)
            gone[list(plan.kept[name][dim])] = False
            if groups == 1:
                weight.index_fill_(dim, gone.nonzero().flatten(), 0)
            else:
                by_group = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
                shape = (groups, 1, weight.shape[1]) + (1,) * (weight.dim() - 2)
                by_group.masked_fill_(gone.view(shape), 0)
    return model


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    for module in model.modules():
        module.training = False

    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    args, kwargs = arguments(inputs)
    with torch.no_grad():
        output: Any = model(*map_tensors(wide, args), **map_tensors(wide, kwargs))
    return list(tensors_in(output))


def _error(expected: Tensor, found: Tensor) -> float:
    if not expected.numel():
        return 0.0
    if not (torch.isfinite(expected).all() and torch.isfinite(found).all()):
        raise ProofError("verify: an output is not finite; check the network's weights and the inputs")
    difference = float((expected.double() - found.double()).abs().max())
    return difference / max(float(expected.double().abs().max()), torch.finfo(torch.float64).tiny)
