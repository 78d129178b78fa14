"""Fit rewritten layers to what the old ones gave, on a few unlabelled batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchslim.calling import Inputs, arguments
from torchslim.copying import copied
from torchslim.errors import RequestError
from torchslim.latency import evaluating

STEPS = 200
"""Steps of Adam for each layer."""
RATE = 0.02
"""The first rate of learning, in root mean squares of each weight; it falls to 0."""

Pair = tuple[Tensor, Tensor]


def fit_to_outputs(old: nn.Module, new: nn.Module, layers: Collection[str], batches: Sequence[Inputs],
                   steps: int = STEPS) -> dict[str, tuple[float, float]]:
    """Train each new layer by itself to give what the old one gives on the same batches.

    Layers are fitted in the order in which they run, and read what the layers before them, already fitted, give: so
    each makes up for what those have lost (Zhang et al. 2015, section 3.2, asymmetric reconstruction).

    Args:
        old: the network before; run in eval mode.
        new: the network with the new layers in it, which are changed in place; run in eval mode.
        layers: their names, the same in both.
        batches: of inputs, unlabelled. What one layer reads and gives on all of them is in memory at a time.
        steps: of Adam, each on one batch.

    Returns:
        For each layer the mean squared error relative to the variance of the old outputs, before and after; the second
        is never the larger. Layers that the network does not call have not-a-number for both.

    Raises:
        RequestError: no batches.
    """
    if not batches:
        raise RequestError("lighten: data= has no batch; give an iterable of inputs, or leave it out")
    errors = dict.fromkeys(layers, (float("nan"), float("nan")))
    for name in _in_order(old, layers, batches[0]):
        wanted, found = (recorded(model, model.get_submodule(name), batches) for model in (old, new))
        # Where the data decides what runs (a detector's regions), the two need not read alike.
        alike = [x.shape for x, _ in wanted] == [x.shape for x, _ in found]
        pairs = [(x, y) for (x, _), (_, y) in zip(found, wanted, strict=True)] if alike else wanted
        errors[name] = _fit(new.get_submodule(name), pairs, steps)
    return errors


def _in_order(model: nn.Module, layers: Collection[str], inputs: Inputs) -> list[str]:
    """Those of the layers that run, in the order in which they do."""
    names: list[str] = []
    _run(model, [inputs], [model.get_submodule(name).register_forward_hook(lambda *_, name=name: names.append(name))
                           for name in layers])
    return list(dict.fromkeys(names))


def recorded(model: nn.Module, layer: nn.Module, batches: Sequence[Inputs]) -> list[Pair]:
    """What a layer reads and gives while the model runs on the batches."""
    pairs: list[Pair] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        (x,) = (*args, *kwargs.values())
        # Clones: an activation that follows may write into either.
        pairs.append((_wide(x.detach().clone()), _wide(output.detach().clone())))

    _run(model, batches, [layer.register_forward_hook(record, with_kwargs=True)])
    return pairs


def _run(model: nn.Module, batches: Sequence[Inputs], handles: Sequence[RemovableHandle]) -> None:
    """The model on the batches, in eval mode; then the hooks go."""
    try:
        with evaluating(model), torch.no_grad():
            for inputs in batches:
                args, kwargs = arguments(inputs)
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least: steps of half precision would be lost."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _fit(layer: nn.Module, pairs: list[Pair], steps: int) -> tuple[float, float]:
    work = copied(layer).requires_grad_(True)
    for tensor in work.parameters():
        tensor.data = _wide(tensor.data)
    start = {name: tensor.detach().clone() for name, tensor in work.state_dict().items()}
    variance = max(sum(float(y.double().var()) for _, y in pairs) / len(pairs), torch.finfo(torch.float32).tiny)
    before = _error(work, pairs) / variance
    with torch.enable_grad():
        _descend(work, pairs, variance, steps)
    after = _error(work, pairs) / variance
    if not after < before:
        work.load_state_dict(start)  # a fit that went astray is not kept
        after = before
    layer.load_state_dict(work.state_dict())
    return before, after


def _descend(layer: nn.Module, pairs: list[Pair], variance: float, steps: int) -> None:
    groups = []
    for parameter in layer.parameters():
        scale = float(parameter.detach().double().square().mean().sqrt())
        groups.append({"params": [parameter], "lr": RATE * (scale or 0.1)})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x, y = pairs[step % len(pairs)]
        optimizer.zero_grad()
        loss: Tensor = (layer(x) - y).square().mean() / variance
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _error(layer: nn.Module, pairs: list[Pair]) -> float:
    """The mean squared difference from what the old layer gave."""
    return sum(float((layer(x) - y).double().square().mean()) for x, y in pairs) / len(pairs)
