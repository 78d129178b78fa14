"""Fit rewritten layers to what the old ones gave, on a few unlabelled batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchslim.compensation.moments import Pair, Tally
from torchslim.rewriting.building import Expanded, Ghosts
from torchslim.rewriting.norm_statistics import counting, following, settle
from torchslim.rewriting.regression import error, factor, solve, state
from torchslim.utils.copying import copied
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, arguments
from torchslim.utils.layer_spec import Spec, plain, spec_of

STEPS = 200
"""Steps of Adam for each layer that has no closed form."""
RATE = 0.02
"""The first rate of learning, in root mean squares of each weight; it falls to 0."""


class _Enough(Exception):
    """The rest of a run is not needed."""


def fit_to_outputs(old: nn.Module, new: nn.Module, layers: Collection[str], batches: Sequence[Inputs],
                   held: Sequence[Inputs] = (), steps: int = STEPS) -> dict[str, tuple[float, float]]:
    """Fit each new layer by itself to give what the old one gives on the same batches.

    Layers are fitted in the order in which they run, and read what the layers before them, already fitted, give: so
    each makes up for what those have lost (Zhang et al. 2015, section 3.2, asymmetric reconstruction). The running
    statistics of the batch norms that follow are moved by as much as what they read
    (`torchslim.rewriting.norm_statistics`).

    Least squares in closed form (`torchslim.rewriting.regression`) are all that a single layer and two factors of one
    need. Of other chains they give the last layer, before and after some steps of Adam on all.

    Args:
        old: the network before; run in eval mode.
        new: the network with the new layers in it, which are changed in place; run in eval mode.
        layers: their names, the same in both.
        batches: of inputs, unlabelled. What one layer reads and gives on all of them is in memory at a time.
        held: others, to which nothing is fitted: they choose the ridge, say whether a fit is kept, and are what the
            errors are of. Where there are none, the errors are those on the batches that were fitted to.
        steps: of Adam, each on one batch.

    Returns:
        For each layer the mean squared error relative to the variance of the old outputs, before and after; the second
        is never the larger. Layers that the network does not call have not-a-number for both.
    """
    errors = dict.fromkeys(layers, (float("nan"), float("nan")))
    tallies, handles = counting(old)
    _run(old, batches, handles)
    settled: set[str] = set()
    for name, calls in _in_order(old, layers, batches[0]).items():
        layer = new.get_submodule(name)
        _follow(new, batches, tallies, settled, layer)
        errors[name] = _fit(old.get_submodule(name), layer, _pairs(old, new, name, batches, calls),
                            _pairs(old, new, name, held, calls), steps)
    _follow(new, batches, tallies, settled)
    return errors


def _pairs(old: nn.Module, new: nn.Module, name: str, batches: Sequence[Inputs], calls: int) -> list[Pair]:
    """What a new layer reads, and what it should give."""
    wanted, found = (recorded(model, model.get_submodule(name), batches, calls) for model in (old, new))
    # Where the data decides what runs (a detector's regions), the two need not read alike.
    if [x.shape for x, _ in wanted] != [x.shape for x, _ in found]:
        return wanted
    return [(x, y) for (x, _), (_, y) in zip(found, wanted, strict=True)]


def _in_order(model: nn.Module, layers: Collection[str], inputs: Inputs) -> dict[str, int]:
    """Those of the layers that run, in the order in which they do, and how often."""
    names: list[str] = []
    _run(model, [inputs], [model.get_submodule(name).register_forward_hook(lambda *_, name=name: names.append(name))
                           for name in layers])
    return {name: names.count(name) for name in dict.fromkeys(names)}


def recorded(model: nn.Module, layer: nn.Module, batches: Sequence[Inputs], calls: int = 0) -> list[Pair]:
    """What a layer reads and gives while the model runs on the batches, until it was called so often in each."""
    pairs: list[Pair] = []
    left = [calls]

    def begin(*_: Any) -> None:
        left[0] = calls

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        (x,) = (*args, *kwargs.values())
        # Clones: an activation that follows may write into either.
        pairs.append((_wide(x.detach().clone()), _wide(output.detach().clone())))
        left[0] -= 1
        if not left[0]:
            raise _Enough

    _run(model, batches, [model.register_forward_pre_hook(begin),
                          layer.register_forward_hook(record, with_kwargs=True)])
    return pairs


def _follow(model: nn.Module, batches: Sequence[Inputs], tallies: dict[str, Tally], settled: set[str],
            until: nn.Module | None = None) -> None:
    """Move the statistics of the norms that run before a layer does."""
    def stop(*_: Any) -> None:
        raise _Enough

    handles = following(model, tallies, settled)
    if handles:
        _run(model, batches, handles + ([] if until is None else [until.register_forward_pre_hook(stop)]))


def _run(model: nn.Module, batches: Sequence[Inputs], handles: Sequence[RemovableHandle]) -> None:
    """The model on the batches, in eval mode; then the hooks go."""
    try:
        with evaluating(model), torch.no_grad():
            for inputs in batches:
                args, kwargs = arguments(inputs)
                with suppress(_Enough):
                    model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least: steps of half precision would be lost."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _fit(old: nn.Module, layer: nn.Module, pairs: list[Pair], held: list[Pair], steps: int) -> tuple[float, float]:
    work = copied(layer).requires_grad_(True)
    for module in work.modules():
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = _wide(tensor.data)
    work.eval()
    measured = held or pairs
    # A single number that is kept back says nothing of how much they vary.
    variance = (_variance([y for _, y in measured]) or _variance([y for _, y in (*pairs, *held)])
                or torch.finfo(torch.float32).tiny)
    start, before = state(work), error(work, measured) / variance
    if isinstance(work, nn.Sequential):
        settle(work, [x for x, _ in pairs])
    best, after = state(work), error(work, measured) / variance
    for improve in _ways(old, work, pairs, held, variance, steps):
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # no solution: it stays as it was
            improve()
        found = error(work, measured) / variance
        if found < after:
            best, after = state(work), found
        work.load_state_dict(best)  # what went astray is not kept
    if not after <= before:
        best, after = start, before
    layer.load_state_dict(best)
    return before, after


def _variance(outputs: Sequence[Tensor]) -> float:
    """Of all numbers in some tensors."""
    count = sum(y.numel() for y in outputs)
    mean = sum(float(y.double().sum()) for y in outputs) / count
    return sum(float((y.double() - mean).square().sum()) for y in outputs) / count


def _ways(old: Any, work: nn.Module, pairs: list[Pair], held: list[Pair], variance: float,
          steps: int) -> Iterator[Callable[[], None]]:
    """What is tried in turn, each from the best so far."""
    parts = [(module, spec) for module in work.modules() if (spec := spec_of(module)) is not None]
    if _factors(work, [spec for _, spec in parts]):
        weight = plain(_wide(old.weight.detach()), 1, parts[0][1].transposed)
        yield lambda: factor(parts[0][0], parts[1][0], weight, pairs, held)
        return
    yield lambda: _solve_ends(work, pairs, held)
    if len(parts) > 1 and steps:
        yield lambda: _descend(work, pairs, variance, steps)
        yield lambda: _solve_ends(work, pairs, held)


def _factors(work: nn.Module, specs: Sequence[Spec]) -> bool:
    """Whether it is a plain layer without groups and a pointwise one on that, with nothing between."""
    return (isinstance(work, nn.Sequential) and len(work) == len(specs) == 2 and specs[0].groups == specs[1].groups == 1
            and prod(specs[1].kernel) * prod(specs[1].stride) == 1)


def _solve_ends(work: Any, pairs: list[Pair], held: list[Pair]) -> None:
    """By least squares the layers from which the outputs come, the others as they are."""
    ends: list[tuple[nn.Module, nn.Module, slice | None]]
    back: nn.Module = nn.Identity()
    if isinstance(work, Ghosts | Expanded):
        before, first, second = ((nn.Identity(), work.primary, work.cheap) if isinstance(work, Ghosts)
                                 else (work.squeeze, work.expand1, work.expand3))
        half = first.get_parameter("weight").shape[0]
        ends = [(before, first, slice(half)),
                (first if isinstance(work, Ghosts) else before, second, slice(half, None))]
    elif isinstance(work, nn.Sequential):
        chain: list[Any] = list(work)
        if isinstance(chain[-1], nn.ChannelShuffle):
            groups: Any = chain.pop().groups
            back = nn.ChannelShuffle(chain[-1].out_channels // groups)
        ends = [(nn.Sequential(*chain[:-1]), chain[-1], None)]
    else:
        ends = [(nn.Identity(), work, None)]
    for before, last, part in ends:
        with torch.no_grad():
            own = [((before(x), back(y) if part is None else _channels(y, part, last)) for x, y in some)
                   for some in (pairs, held)]
            solve(last, own[0], list(own[1]))


def _channels(y: Tensor, part: slice, layer: nn.Module) -> Tensor:
    """Some channels of maps, which may come without a batch."""
    spec = spec_of(layer)
    assert spec is not None
    return y.movedim(-spec.dims - 1, 0)[part].movedim(0, -spec.dims - 1)


def _descend(layer: nn.Module, pairs: list[Pair], variance: float, steps: int) -> None:
    groups = []
    for parameter in layer.parameters():
        scale = float(parameter.detach().double().square().mean().sqrt())
        groups.append({"params": [parameter], "lr": RATE * (scale or 0.1)})
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
