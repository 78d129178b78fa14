"""Fit rewritten layers to what the old ones gave, on a few unlabelled batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.calling import Inputs, arguments
from torchslim.copying import copied
from torchslim.errors import RequestError
from torchslim.latency import evaluating

STEPS = 200
"""Steps of Adam for each layer."""
RATE = 0.02
"""The first rate of learning, in root mean squares of each weight; it falls to 0."""

Pair = tuple[Tensor, Tensor]


def fit_to_outputs(old: nn.Module, new: Mapping[str, nn.Module], batches: Sequence[Inputs],
                   steps: int = STEPS) -> dict[str, tuple[float, float]]:
    """Train each new layer by itself to give what the old one gives on the same inputs.

    Args:
        old: the network before, in which the old layers are; run in eval mode.
        new: the new layers by the name of the old one; changed in place.
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
    errors = {}
    for name, layer in new.items():
        pairs = _recorded(old, old.get_submodule(name), batches)
        errors[name] = _fit(layer, pairs, steps) if pairs else (float("nan"), float("nan"))
    return errors


def _recorded(model: nn.Module, layer: nn.Module, batches: Sequence[Inputs]) -> list[Pair]:
    """What a layer reads and gives while the model runs on the batches."""
    pairs: list[Pair] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        (x,) = (*args, *kwargs.values())
        # Clones: an activation that follows may write into either.
        pairs.append((_wide(x.detach().clone()), _wide(output.detach().clone())))

    handle = layer.register_forward_hook(record, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            for inputs in batches:
                args, kwargs = arguments(inputs)
                model(*args, **kwargs)
    finally:
        handle.remove()
    return pairs


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
    return sum(float((layer(x) - y).double().square().mean()) for x, y in pairs) / len(pairs)
