"""Fit replaced layers to the outputs of the old ones, on a few unlabelled batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchslim.compensation.moments import ChannelStatistics, Pair, wide
from torchslim.rewriting.building import FireLayer, GhostLayer
from torchslim.rewriting.norm_statistics import collect_statistics, initialise_norms, move_statistics
from torchslim.rewriting.regression import copied_state, fit_layer, fit_low_rank, mean_squared_error
from torchslim.utils.copying import copy_model
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, arguments
from torchslim.utils.layer_spec import LayerSpec, filters_first, spec_of

STEPS = 200
"""Steps of Adam for each layer that has no closed form."""
LEARNING_RATE = 0.02
"""Initial learning rate, relative to the root mean square of each weight; it falls to 0."""


def fit_to_outputs(old: nn.Module, new: nn.Module, layers: Collection[str], batches: Sequence[Inputs],
                   held_out: Sequence[Inputs] = (), steps: int = STEPS) -> dict[str, tuple[float, float]]:
    """Fit each new layer by itself to the outputs of the old one on the same batches.

    Layers are fitted in the order in which they run. Each reads the outputs of the layers before it, already fitted,
    and so makes up for their errors (Zhang et al. 2015, section 3.2, asymmetric reconstruction). The running statistics
    of the batch norms that follow are moved (`torchslim.rewriting.norm_statistics`).

    A single layer and two factors of one are fitted by least squares in closed form
    (`torchslim.rewriting.regression`). In other chains the last layer is, before and after some steps of Adam on all.

    Args:
        old: the network before; run in eval mode.
        new: the network with the new layers in it, which are changed in place; run in eval mode.
        layers: their names, the same in both.
        batches: of inputs, unlabelled. The inputs and outputs of one layer on all of them are in memory at a time; for
            each layer both networks run on all of them, to the end.
        held_out: others, to which nothing is fitted: they choose the ridge, decide whether a fit is kept, and the
            errors are measured on them. Without any, the errors are those on `batches`.
        steps: of Adam, each on one batch.

    Returns:
        For each layer the mean squared error relative to the variance of the old outputs, before and after; the second
        is never the larger. Layers that the network does not call have not-a-number for both.
    """
    errors = dict.fromkeys(layers, (float("nan"), float("nan")))
    statistics, handles = collect_statistics(old)
    _run(old, batches, handles)
    moved: set[str] = set()
    for name in _execution_order(old, layers, batches[0]):
        layer = new.get_submodule(name)
        _move_norms(new, batches, statistics, moved, layer)
        errors[name] = _fit(old.get_submodule(name), layer, _pairs(old, new, name, batches),
                            _pairs(old, new, name, held_out), steps)
    _move_norms(new, batches, statistics, moved)
    return errors


def _pairs(old: nn.Module, new: nn.Module, name: str, batches: Sequence[Inputs]) -> list[Pair]:
    """The inputs of a new layer, and the outputs of the old one."""
    wanted, given = (record_layer(model, model.get_submodule(name), batches) for model in (old, new))
    # Where data decide what runs (the regions of a detector), the two may read different shapes.
    if [x.shape for x, _ in wanted] != [x.shape for x, _ in given]:
        return wanted
    return [(x, y) for (x, _), (_, y) in zip(given, wanted, strict=True)]


def _execution_order(model: nn.Module, layers: Collection[str], inputs: Inputs) -> list[str]:
    """Those of the layers that run, in the order of their first calls."""
    called: dict[str, None] = {}
    _run(model, [inputs], [model.get_submodule(name).register_forward_hook(
        lambda *_, name=name: called.setdefault(name)) for name in layers])
    return list(called)


def record_layer(model: nn.Module, layer: nn.Module, batches: Sequence[Inputs]) -> list[Pair]:
    """The inputs and outputs of a layer at each of its calls while the model runs on the batches."""
    pairs: list[Pair] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        (x,) = (*args, *kwargs.values())
        # Clones: an activation that follows may write into either.
        pairs.append((wide(x.detach().clone()), wide(output.detach().clone())))

    _run(model, batches, [layer.register_forward_hook(record, with_kwargs=True)])
    return pairs


def _move_norms(model: nn.Module, batches: Sequence[Inputs], statistics: dict[str, ChannelStatistics], moved: set[str],
                until: nn.Module | None = None) -> None:
    """Move the statistics of the norms that run before a layer does."""
    if handles := move_statistics(model, statistics, moved, until):
        _run(model, batches, handles)


def _run(model: nn.Module, batches: Sequence[Inputs], handles: Sequence[RemovableHandle]) -> None:
    """Run the model on the batches in eval mode, then remove the hooks."""
    try:
        with evaluating(model), torch.no_grad():
            for inputs in batches:
                args, kwargs = arguments(inputs)
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _fit(old: nn.Module, layer: nn.Module, pairs: list[Pair], held_out: list[Pair], steps: int) -> tuple[float, float]:
    """Fit one layer in place; its relative error before and after."""
    work = copy_model(layer).requires_grad_(True)
    for module in work.modules():
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = wide(tensor.data)
    work.eval()
    measured = held_out or pairs
    # A single held-out number has no variance.
    variance = (_variance([y for _, y in measured]) or _variance([y for _, y in (*pairs, *held_out)])
                or torch.finfo(torch.float32).tiny)
    start, before = copied_state(work), mean_squared_error(work, measured) / variance
    if isinstance(work, nn.Sequential):
        initialise_norms(work, [x for x, _ in pairs])
    best, after = copied_state(work), mean_squared_error(work, measured) / variance
    for attempt in _attempts(old, work, pairs, held_out, variance, steps):
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # no solution: it stays as it was
            attempt()
        error = mean_squared_error(work, measured) / variance
        if error < after:
            best, after = copied_state(work), error
        work.load_state_dict(best)  # what became worse is not kept
    if not after <= before:
        best, after = start, before
    layer.load_state_dict(best)
    return before, after


def _variance(outputs: Sequence[Tensor]) -> float:
    """Of all numbers in some tensors."""
    count = sum(y.numel() for y in outputs)
    mean = sum(float(y.double().sum()) for y in outputs) / count
    return sum(float((y.double() - mean).square().sum()) for y in outputs) / count


def _attempts(old: Any, work: nn.Module, pairs: list[Pair], held_out: list[Pair], variance: float,
              steps: int) -> Iterator[Callable[[], None]]:
    """Ways to improve the weights, each from the best so far."""
    parts = [(module, spec) for module in work.modules() if (spec := spec_of(module)) is not None]
    if _is_low_rank(work, [spec for _, spec in parts]):
        weight = filters_first(wide(old.weight.detach()), 1, parts[0][1].transposed)
        yield lambda: fit_low_rank(parts[0][0], parts[1][0], weight, pairs, held_out)
        return
    yield lambda: _fit_output_layers(work, pairs, held_out)
    if len(parts) > 1 and steps:
        yield lambda: _train(work, pairs, variance, steps)
        yield lambda: _fit_output_layers(work, pairs, held_out)


def _is_low_rank(work: nn.Module, specs: Sequence[LayerSpec]) -> bool:
    """Whether it is a layer without groups and a pointwise one on that, with nothing between."""
    return (isinstance(work, nn.Sequential) and len(work) == len(specs) == 2 and specs[0].groups == specs[1].groups == 1
            and prod(specs[1].kernel) * prod(specs[1].stride) == 1)


def _fit_output_layers(work: Any, pairs: list[Pair], held_out: list[Pair]) -> None:
    """Fit by least squares the layers whose outputs are those of the whole, the others as they are."""
    # (what runs before, the layer, the channels of the outputs that it makes; None for all)
    outputs: list[tuple[nn.Module, nn.Module, slice | None]]
    unshuffle: nn.Module = nn.Identity()
    if isinstance(work, GhostLayer | FireLayer):
        before, first, second = ((nn.Identity(), work.primary, work.cheap) if isinstance(work, GhostLayer)
                                 else (work.squeeze, work.expand1, work.expand3))
        half = first.get_parameter("weight").shape[0]
        outputs = [(before, first, slice(half)),
                   (first if isinstance(work, GhostLayer) else before, second, slice(half, None))]
    elif isinstance(work, nn.Sequential):
        chain: list[Any] = list(work)
        if isinstance(chain[-1], nn.ChannelShuffle):
            groups: Any = chain.pop().groups
            unshuffle = nn.ChannelShuffle(chain[-1].out_channels // groups)
        outputs = [(nn.Sequential(*chain[:-1]), chain[-1], None)]
    else:
        outputs = [(nn.Identity(), work, None)]
    for before, layer, channels in outputs:
        with torch.no_grad():
            layer_pairs, layer_held_out = ([
                (before(x), unshuffle(y) if channels is None else _select_channels(y, channels, layer))
                for x, y in some] for some in (pairs, held_out))
            fit_layer(layer, layer_pairs, layer_held_out)


def _select_channels(y: Tensor, channels: slice, layer: nn.Module) -> Tensor:
    """Some channels of a layer's outputs, with or without a batch dimension."""
    spec = spec_of(layer)
    assert spec is not None
    return y.movedim(-spec.dims - 1, 0)[channels].movedim(0, -spec.dims - 1)


def _train(layer: nn.Module, pairs: list[Pair], variance: float, steps: int) -> None:
    """Adam on all weights of a layer."""
    groups = []
    for parameter in layer.parameters():
        scale = float(parameter.detach().double().square().mean().sqrt())
        groups.append({"params": [parameter], "lr": LEARNING_RATE * (scale or 0.1)})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for step in range(steps):
            x, y = pairs[step % len(pairs)]
            optimizer.zero_grad()
            loss: Tensor = (layer(x) - y).square().mean() / variance
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
