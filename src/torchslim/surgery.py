"""Cut a copy of a model as a plan says: model + Plan -> model. Decides nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.calling import unwrap
from torchslim.errors import PlanError, UnsupportedModel
from torchslim.modules import named_modules, tensors_of
from torchslim.plans import Mend, Plan
from torchslim.widths import computed


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """A slim copy of `model`; the model itself is untouched.

    Dtype, device, memory format, `requires_grad`, training mode, hooks and all other attributes are kept. Gradients
    are not carried over. Compiled and data-parallel wrappers are looked through: the copy is of the plain module.

    Raises:
        PlanError: the plan was made for another model: a name is missing, an index out of range, an attribute other
            than it was.
        UnsupportedModel: a scripted module, or one that can't be copied.
    """
    model = unwrap(model)
    state = tensors_of(model)
    parts: dict[int, Any] = {}
    left_behind = computed(model)
    for name, dims in plan.kept.items():
        if name not in state:
            raise PlanError(f"`{name}`: the plan cuts this tensor and the model has none of that name; "
                            "apply the plan to the model that it was made for")
        for own in (name, *left_behind.get(name, ())):
            parts[id(state[own])] = _cut(state[own], own, dims, plan.grouped.get(name))
    try:
        slim = copied(model, parts)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"model: {type(model).__name__} can't be copied ({error}); "
                               "copy.deepcopy(model) must work") from error
    for mend in plan.mends:
        _mend(slim, mend)
    return slim


def copied(model: nn.Module, parts: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy in which `parts` stand in for the tensors with these ids.

    Tensors that are a computation's result have no deep copy of torch's own. Hooks such as those of
    `torch.nn.utils.weight_norm` and `prune` leave them behind, and compute them anew before each call.
    """
    memo = {id(t): t.detach().clone() for t in tensors_of(model).values() if not t.is_leaf}
    return copy.deepcopy(model, {**memo, **(parts or {})})


def _cut(tensor: Tensor, name: str, dims: Mapping[int, Sequence[int]], groups: tuple[int, int] | None) -> Tensor:
    """The kept part of a tensor, contiguous in the tensor's own memory format."""
    for dim, index in dims.items():
        size = tensor.shape[dim] if dim < tensor.dim() else 0
        if groups is not None and dim == 1:
            size *= groups[0]
        if not index or max(index) >= size or min(index) < 0:
            raise PlanError(f"`{name}`: the plan keeps indices up to {max(index, default=-1)} of dimension {dim}, "
                            f"which has {size}; apply the plan to the model that it was made for")
    with torch.no_grad():
        part = tensor.detach()
        if groups is not None and 1 in dims:
            part = _cut_grouped(part, name, dims, groups)
        else:
            for dim, index in dims.items():
                part = part.index_select(dim, torch.tensor(index, device=part.device))
        part = part.clone(memory_format=_memory_format(tensor))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(part, requires_grad=tensor.requires_grad)
    return part.requires_grad_(tensor.requires_grad and tensor.is_leaf)


def _cut_grouped(weight: Tensor, name: str, dims: Mapping[int, Sequence[int]], groups: tuple[int, int]) -> Tensor:
    """A grouped convolution's filters: each group keeps its own input channels, numbered over all groups."""
    before, after = groups
    outs, ins = list(dims.get(0, range(weight.shape[0]))), list(dims[1])
    if len(outs) % after or len(ins) % after:
        raise PlanError(f"`{name}`: {len(outs)} filters on {len(ins)} channels cannot be split into {after} groups; "
                        f"keep multiples of {after}")
    width, size = weight.shape[1], weight.shape[0] // before
    parts = []
    for group in range(after):
        own = outs[group * len(outs) // after:(group + 1) * len(outs) // after]
        read = ins[group * len(ins) // after:(group + 1) * len(ins) // after]
        homes = {out // size for out in own} | {channel // width for channel in read}
        if len(homes) != 1:
            raise PlanError(f"`{name}`: group {group} of the slim convolution would mix the original groups "
                            f"{sorted(homes)}; keep equally many channels of each group")
        base = homes.pop() * width
        rows = weight.index_select(0, torch.tensor(own, device=weight.device))
        parts.append(rows.index_select(1, torch.tensor([channel - base for channel in read], device=weight.device)))
    return torch.cat(parts)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == ndim and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
            return layout
    return torch.contiguous_format


def _mend(model: nn.Module, mend: Mend) -> None:
    try:
        owner = model.get_submodule(mend.module)
        found = getattr(owner, mend.attribute)
    except AttributeError as error:
        raise PlanError(f"`{mend.module}.{mend.attribute}`: the plan mends this attribute and the model has none; "
                        "apply the plan to the model that it was made for") from error
    plain = tuple(found) if isinstance(found, list | tuple) else found
    if plain != mend.old:
        raise PlanError(f"`{mend.module}.{mend.attribute}`: is {found}, the plan expects {mend.old}; "
                        "apply the plan to the model that it was made for")
    new: Any = mend.new
    if isinstance(found, list | tuple) and isinstance(mend.new, tuple):
        new = type(found)(mend.new) if type(found) in (list, tuple, torch.Size) else mend.new
    setattr(owner, mend.attribute, new)


def _narrow(tensor: Tensor, dims: Mapping[int, int]) -> Tensor:
    """A view of as many elements as a slim tensor has, laid out as that one will be: torch may choose by the layout."""
    shape = [dims.get(dim, size) for dim, size in enumerate(tensor.shape)]
    if 0 in tensor.stride():  # expanded: there are not so many elements
        return tensor[tuple(slice(size) for size in shape)]
    layout = torch.empty(shape, device="meta").to(memory_format=_memory_format(tensor))
    return tensor.as_strided(shape, layout.stride(), tensor.storage_offset())


@contextmanager
def resized(model: nn.Module, sizes: Mapping[str, Mapping[int, int]], mends: Sequence[Mend]) -> Iterator[None]:
    """The model itself with narrower tensors while the block runs: views of their storage, nothing is copied.

    Good for learning what shapes the slim model will have, at the price of a trace.
    """
    state = tensors_of(model)
    views: dict[int, Tensor] = {}
    for name, dims in sizes.items():
        view = _narrow(state[name].detach(), dims)
        views[id(state[name])] = nn.Parameter(view, requires_grad=state[name].requires_grad) if isinstance(
            state[name], nn.Parameter) else view
    spaces: list[dict[str, Any]] = []
    for _, module in named_modules(model):
        spaces += [module._parameters, module._buffers, module.__dict__]
    replaced = [(space, key, item) for space in spaces for key, item in list(space.items()) if id(item) in views]
    old = [(model.get_submodule(mend.module), mend) for mend in mends]
    values = [(owner, mend.attribute, getattr(owner, mend.attribute)) for owner, mend in old]
    try:
        for space, key, item in replaced:
            space[key] = views[id(item)]
        for mend in mends:
            _mend(model, mend)
        yield
    finally:
        for space, key, item in replaced:
            space[key] = item
        for owner, attribute, value in values:
            setattr(owner, attribute, value)
