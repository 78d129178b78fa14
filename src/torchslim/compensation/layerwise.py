"""Visit the layers of a network in call order, each with its inputs on all batches.

The inputs of a layer depend on the refitted layers before it. If the batches can be joined into one, a single pass
visits all layers by hooks; else there is a pass over the batches for each layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.errors import RequestError, TraceError
from torchslim.utils.data import call_on_batch
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, tensors_in

Visit = Callable[[str, list[Tensor]], None]
"""Called with a layer's name and its inputs on all batches, view by view; may change the layer."""


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module is a batch norm with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


@torch.no_grad()
def call_counts(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, int]:
    """Number of calls of each module, in the order of their first calls."""
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(model.get_submodule(name).register_forward_pre_hook(
                lambda *_, name=name: calls.update([name])))
        stack.enter_context(evaluating(model))
        call_on_batch(model, inputs, 0)
    return dict(calls)


@torch.no_grad()
def visit_in_order(views: Sequence[nn.Module], names: Sequence[str], batches: Sequence[Inputs], visit: Visit) -> None:
    """Visit layers of a network before they run, with earlier layers as changed by their visits.

    Args:
        views: the network, and possibly a second one that differs only in the statistics of batch norms.
        names: of layers that are called once, in call order.
        batches: of inputs.
        visit: see `Visit`; the views share layers only if the caller made them.

    Raises:
        RequestError: the network fails on a batch.
        TraceError: it runs one of the layers on some batches only.
    """
    with evaluating(*views):
        joined = joined_batches(views[0], names, [*batches] * len(views)) if names else None
        if joined is not None:
            _visit_in_one_pass(views, names, joined, visit)
            return
        for name in names:
            visit(name, [x for view in views for x in _inputs_of_layer(view, name, batches)])


def _visit_in_one_pass(views: Sequence[nn.Module], names: Sequence[str], joined: Inputs, visit: Visit) -> None:
    network, *others = views
    with ExitStack() as stack:
        for name in names:
            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                visit(name, [_first(args, kwargs)])

            stack.enter_context(network.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True))
        for name, norm in network.named_modules():
            if others and has_running_statistics(norm):
                stack.enter_context(norm.register_forward_hook(_second_half_by(others[0].get_submodule(name))))
        call_on_batch(network, joined, 0)


def _second_half_by(norm: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A hook that applies another norm to the second half of a batch."""
    def hook(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        count = len(y) // 2
        return torch.cat([y[:count], norm(args[0][count:])])

    return hook


def _inputs_of_layer(network: nn.Module, name: str, batches: Sequence[Inputs]) -> list[Tensor]:
    inputs: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(_first(args, kwargs).clone())  # against later in-place operations

    with network.get_submodule(name).register_forward_pre_hook(record, with_kwargs=True):
        for index, batch in enumerate(batches):
            call_on_batch(network, batch, index)
            if len(inputs) != index + 1:
                raise TraceError(f"data: the model does not run the same layers on every batch (`{name}` runs "
                                 f"{len(inputs) - index} times on batch {index}); give batches on which it does")
    return inputs


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return next(iter((*args, *kwargs.values())))


# --- joining --------------------------------------------------------------------------------------------------

def joined_batches(model: nn.Module, names: Sequence[str], batches: Sequence[Inputs]) -> Inputs | None:
    """All batches as one; None if the model may not treat the items of a batch independently.

    This is tested with the first and the last batch: joined, they must give the same outputs as separately, and inputs
    of these layers and norms with the sum of their rows along dimension 0.
    """
    if len(batches) == 1:
        return batches[0]
    try:
        joined, pair = concatenated(batches), concatenated([batches[0], batches[-1]])
    except (ValueError, RuntimeError):
        return None
    modules = [*names, *(name for name, module in model.named_modules() if has_running_statistics(module))]
    (first, first_rows), (last, last_rows) = (_outputs_and_rows(model, modules, batches[index], index % len(batches))
                                              for index in (0, -1))
    try:
        both, rows = _outputs_and_rows(model, modules, pair, 0)
    except RequestError:
        return None
    if rows.keys() != first_rows.keys() | last_rows.keys():
        return None
    # Rows must add up and other dimensions agree everywhere, else dimension 0 is not the batch.
    for name, shapes in rows.items():
        alone = [first_rows.get(name, []), last_rows.get(name, [])]
        if [len(each) for each in alone] != [len(shapes)] * 2 or any(
                shape != (a[0] + b[0], *a[1:]) or a[1:] != b[1:] for shape, a, b in zip(shapes, *alone, strict=True)):
            return None
    return joined if _is_concatenation(both, first, last) else None


def concatenated(batches: Sequence[Any]) -> Any:
    """Batches concatenated along dimension 0; lists (of images) as one list.

    Raises:
        ValueError: they differ in structure, or in anything but their tensors and lists.
    """
    first = batches[0]
    if any(type(batch) is not type(first) for batch in batches):
        raise ValueError("batches of several types")
    if isinstance(first, Tensor):
        if not first.dim() or any((b.dtype, b.shape[1:]) != (first.dtype, first.shape[1:]) for b in batches):
            raise ValueError("tensors of several shapes")
        return torch.cat(list(batches))
    if isinstance(first, list):
        return [item for batch in batches for item in batch]
    if type(first) is tuple:
        return tuple(concatenated(items) for items in zip(*batches, strict=True))
    if type(first) is dict:
        if any(batch.keys() != first.keys() for batch in batches):
            raise ValueError("mappings of several keys")
        return {key: concatenated([batch[key] for batch in batches]) for key in first}
    if any(batch is not first and batch != first for batch in batches):
        raise ValueError("values that differ")
    return first


def _outputs_and_rows(model: nn.Module, names: Sequence[str], batch: Inputs,
                      index: int) -> tuple[list[Tensor], dict[str, list[tuple[int, ...]]]]:
    """A model's output tensors, and the input shapes of some layers by name."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    with ExitStack() as stack:
        for name in names:
            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                shapes.setdefault(name, []).append(tuple(_first(args, kwargs).shape))

            stack.enter_context(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
        return [y.detach() for y in tensors_in(call_on_batch(model, batch, index))], shapes


def _is_concatenation(both: Sequence[Tensor], first: Sequence[Tensor], last: Sequence[Tensor]) -> bool:
    if len(both) == len(first) == len(last):
        return all(a.dim() and b.dim() and a.shape[1:] == b.shape[1:] and _close(whole, torch.cat([a, b]))
                   for whole, a, b in zip(both, first, last, strict=True))
    parts = [*first, *last]  # a list of outputs for each image
    return len(both) == len(parts) and all(map(_close, both, parts))


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which may depend on the batch size."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()) or not a.numel():
        return torch.equal(a, b)
    largest = b.abs().nan_to_num(posinf=0).max()
    return torch.allclose(a, b, rtol=0, atol=float(torch.finfo(a.dtype).eps**0.5 * largest), equal_nan=True)
