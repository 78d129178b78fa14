"""Model + `Plan` -> slim copy of the model. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import accumulate
from operator import mul
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from torchslim.errors import PlanError, UnsupportedModel
from torchslim.surgery.plans import AttributeUpdate, Plan
from torchslim.surgery.width_attributes import tensors_computed_by_hooks
from torchslim.utils.attention import become_slim, is_plain_attention
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import unwrap
from torchslim.utils.modules import BLOCK_ELEMENTS, named_modules, tensors_of


@torch.inference_mode(False)
def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """A slim copy of `model`; the model itself is untouched.

        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> plan = ts.plan(model, torch.zeros(1, 3, 8, 8), macs=0.5)
        >>> slim = ts.apply(model, plan)
        >>> model[0].out_channels, slim[0].out_channels
        (8, 4)

    Dtype, device, memory format, `requires_grad`, training mode, hooks and all other attributes are kept. Gradients
    are not carried over. Compiled and data-parallel wrappers are removed: the copy is of the module inside.

    Raises:
        PlanError: the plan was made for another model: a name is missing, an index out of range, an attribute other
            than it was.
        UnsupportedModel: a scripted module, or one that can't be copied.
    """
    model = unwrap(model)
    state = tensors_of(model)
    for name in plan.unused:
        if name not in state:
            raise PlanError(f"`{name}`: the plan takes this parameter out and the model has none of that name; "
                            "apply the plan to the model that it was made for")
    replacements: dict[int, Any] = {}
    computed = tensors_computed_by_hooks(model)
    indices_of = cache(KeptIndices)
    for name, dims in plan.kept.items():
        if name not in state:
            raise PlanError(f"`{name}`: the plan cuts this tensor and the model has none of that name; "
                            "apply the plan to the model that it was made for")
        for target in (name, *computed.get(name, ())):
            tensor = state[target]
            replacements[id(tensor)] = cut_tensor(tensor, target, dims, plan.grouped.get(name), indices_of)
    try:
        slim = copy_model(model, replacements)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"model: {type(model).__name__} can't be copied ({error}); "
                               "copy.deepcopy(model) must work") from error
    owners = dict(named_modules(slim))
    for name in {name.rpartition(".")[0] for name in plan.kept}:
        if is_plain_attention(owners[name]):
            become_slim(owners[name])
    for update in plan.attribute_updates:
        _update_attribute(owners, update)
    unused = {id(state.get(name)) for name in plan.unused}
    for name, tensor in state.items():
        if id(tensor) in unused:  # a tied one under each of its names
            _take_out(slim, name)
    return slim


def _take_out(model: nn.Module, name: str) -> None:
    owner, _, key = name.rpartition(".")
    model.get_submodule(owner).register_parameter(key, None)


class KeptIndices:
    """The indices that a dimension keeps, as a tensor; cached, since many tensors keep the same ones."""

    def __init__(self, kept: tuple[int, ...]) -> None:
        self.kept = kept
        self.min, self.max = min(kept, default=-1), max(kept, default=-1)
        self.tensor = torch.tensor(kept)

    def on(self, device: torch.device) -> Tensor:
        """The indices as a tensor on a device."""
        if self.tensor.device != device:
            self.tensor = torch.tensor(self.kept, device=device)
        return self.tensor


def cut_tensor(tensor: Tensor, name: str, dims: Mapping[int, Sequence[int]], groups: tuple[int, int] | None,
               index_of: Callable[[tuple[int, ...]], KeptIndices] = KeptIndices) -> Tensor:
    """The kept part of a tensor, contiguous in the tensor's own memory format.

    Args:
        tensor: a parameter, a buffer, or an optimizer's state of the same shape.
        name: the parameter's, for messages.
        dims: the indices that are kept of each dimension that is cut.
        groups: the groups of a grouped convolution before and after.
        index_of: makes a `KeptIndices`; a caching one saves time where many tensors keep the same indices.

    Raises:
        PlanError: an index out of range, or filters that can't be split into the groups.
    """
    indices = {dim: index_of(tuple(kept)) for dim, kept in dims.items()}
    for dim, index in indices.items():
        size = tensor.shape[dim] if dim < tensor.dim() else 0
        if groups is not None and dim == 1:
            size *= groups[0]
        if index.min < 0 or index.max >= size:
            raise PlanError(f"`{name}`: the plan keeps indices up to {index.max} of dimension {dim}, "
                            f"which has {size}; apply the plan to the model that it was made for")
    with torch.no_grad():
        part = tensor.detach()
        if groups is not None and 1 in dims:
            part = _cut_grouped(part, name, dims, groups)
        else:
            part = _select(part, {dim: index.on(part.device) for dim, index in indices.items()})
        part = part.contiguous(memory_format=_memory_format(tensor))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(part, requires_grad=tensor.requires_grad)
    return part.requires_grad_(tensor.requires_grad and tensor.is_leaf)


def _select(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """The elements at these indices of each dimension; large tensors are cut block by block in two dimensions."""
    # The dimension that loses most is cut first.
    dims = sorted(indices, key=lambda dim: len(indices[dim]) / tensor.shape[dim])
    if len(dims) == 2 and 0 in dims and tensor.numel() > BLOCK_ELEMENTS and tensor.is_contiguous():
        other = next(dim for dim in dims if dim)
        shape = [len(indices[dim]) if dim in indices else size for dim, size in enumerate(tensor.shape)]
        part = tensor.new_empty(shape)
        step = max(1, BLOCK_ELEMENTS * len(tensor) // tensor.numel())
        for rows, out in zip(torch.split(indices[0], step), torch.split(part, step), strict=True):
            torch.index_select(tensor.index_select(0, rows), other, indices[other], out=out)
        return part
    for dim in dims:
        tensor = tensor.index_select(dim, indices[dim])
    return tensor


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
        filters = outs[group * len(outs) // after:(group + 1) * len(outs) // after]
        read = ins[group * len(ins) // after:(group + 1) * len(ins) // after]
        sources = {filter_ // size for filter_ in filters} | {channel // width for channel in read}
        if len(sources) != 1:
            raise PlanError(f"`{name}`: group {group} of the slim convolution would mix the original groups "
                            f"{sorted(sources)}; keep equally many channels of each group")
        base = sources.pop() * width
        rows = weight.index_select(0, torch.tensor(filters, device=weight.device))
        parts.append(rows.index_select(1, torch.tensor([channel - base for channel in read], device=weight.device)))
    return torch.cat(parts)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == ndim and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
            return layout
    return torch.contiguous_format


def _update_attribute(owners: Mapping[str, nn.Module], update: AttributeUpdate) -> None:
    try:
        value = _value_of(owners, update)
    except (AttributeError, LookupError) as error:
        raise PlanError(f"`{update.module}.{update.attribute}`: the plan updates this attribute and the model has "
                        "none; apply the plan to the model that it was made for") from error
    plain = tuple(value) if isinstance(value, list | tuple) else value
    if plain != update.old:
        raise PlanError(f"`{update.module}.{update.attribute}`: is {value}, the plan expects {update.old}; "
                        "apply the plan to the model that it was made for")
    new: Any = update.new
    if isinstance(value, list | tuple) and isinstance(update.new, tuple):
        new = type(value)(update.new) if type(value) in (list, tuple, torch.Size) else update.new
    _set_value(owners, update, new)


def _value_of(owners: Mapping[str, nn.Module], update: AttributeUpdate) -> Any:
    value: Any = owners[update.module]
    for key in update.attribute.split("."):
        value = value[key] if isinstance(value, Mapping) else (
            value[int(key)] if isinstance(value, list) else getattr(value, key))
    return value


def _set_value(owners: Mapping[str, nn.Module], update: AttributeUpdate, new: Any) -> None:
    path, _, key = update.attribute.rpartition(".")
    holder = _value_of(owners, replace(update, attribute=path)) if path else owners[update.module]
    if isinstance(holder, dict):
        holder[key] = new
    elif isinstance(holder, list):
        holder[int(key)] = new
    else:
        setattr(holder, key, new)


def _narrow(tensor: Tensor, dims: Mapping[int, int]) -> Tensor:
    """A view with the shape and memory layout of the slim tensor: torch may choose a kernel by the layout."""
    shape = [dims.get(dim, size) for dim, size in enumerate(tensor.shape)]
    if 0 in tensor.stride():  # expanded: its storage holds fewer elements
        return tensor[tuple(slice(size) for size in shape)]
    layout = _memory_format(tensor)
    if layout is torch.contiguous_format:
        return tensor.as_strided(shape, [*accumulate(shape[:0:-1], mul, initial=1)][::-1], tensor.storage_offset())
    strides = torch.empty(shape, device="meta").to(memory_format=layout).stride()
    return tensor.as_strided(shape, strides, tensor.storage_offset())


@contextmanager
def resized(model: nn.Module, sizes: Mapping[str, Mapping[int, int]],
            attribute_updates: Sequence[AttributeUpdate]) -> Iterator[None]:
    """The model itself with narrower tensors while the block runs: views of their storage, nothing is copied.

    A trace of it has the shapes of the slim model; values are meaningless.
    """
    state = tensors_of(model)
    views: dict[int, Tensor] = {}
    for name, dims in sizes.items():
        view = _narrow(state[name].detach(), dims)
        views[id(state[name])] = nn.Parameter(view, requires_grad=state[name].requires_grad) if isinstance(
            state[name], nn.Parameter) else view
    owners = dict(named_modules(model))
    spaces: list[dict[str, Any]] = []
    for module in owners.values():
        spaces += [module._parameters, module._buffers, module.__dict__]
    replaced: list[tuple[dict[str, Any], str, Any, Any]] = [
        (space, key, item, views[id(item)]) for space in spaces for key, item in space.items() if id(item) in views]
    for module in owners.values():
        if isinstance(module, nn.RNNBase):  # it lists its weights, and lays them out anew where the list is outdated
            flat = [views.get(id(weight), weight) for weight in module._flat_weights]
            replaced += [(module.__dict__, "_flat_weights", module._flat_weights, flat),
                         (module.__dict__, "_flat_weight_refs", module._flat_weight_refs,
                          [None if weight is None else ref(weight) for weight in flat])]
    values = [(update, _value_of(owners, update)) for update in attribute_updates]
    try:
        for space, key, _, view in replaced:
            space[key] = view
        for update in attribute_updates:
            _update_attribute(owners, update)
        yield
    finally:
        for space, key, item, _ in replaced:
            space[key] = item
        for update, value in values:
            _set_value(owners, update, value)
