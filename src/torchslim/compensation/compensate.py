"""Compensate a cut without training: model + cut model + images -> refitted weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.compensation.layerwise import call_counts, has_running_statistics, visit_in_order
from torchslim.compensation.moments import PLACES, InputSampler, OutputSampler, Pairs, moments_of, wide
from torchslim.compensation.recalibration import recalibrated
from torchslim.errors import PlanError, RequestError
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import Plan
from torchslim.utils.copying import copy_model
from torchslim.utils.data import call_on_batch, list_batches
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, unwrap
from torchslim.utils.layer_spec import LayerSpec, filters_first, spec_of, torch_layout

RIDGE = 0.3
"""Ridge on changes of the cut's weights, in mean squares of each weight's input."""

MAX_STORED_BYTES = 2**31
"""Maximum size of the original's outputs in memory; more layers need another pass of both networks."""

TINY = torch.finfo(torch.float64).tiny


@torch.inference_mode(False)
def compensate(model: nn.Module, slim: nn.Module, plan: Plan, data: Iterable[Inputs], *,
               ridge: float = RIDGE) -> nn.Module:
    """A copy of a slim network whose layers are refitted to the original's outputs. No labels, no training.

    Each convolution or linear layer, from the first that lost inputs, is solved by ridge regression on all batches, in
    call order: from its inputs in the slim network, whose earlier layers are already refitted, to the outputs of the
    original's layer (channel pruning, He et al. 2017, section 3.1; asymmetric reconstruction, Zhang et al. 2015,
    section 3.2). The mean contribution of the removed channels goes into the bias, or into the running mean of the next
    batch norm. Call it after `verify`: a refitted network no longer equals the silenced original.

    A few images activate few of a network's features, and weights fitted to these do not generalise. So every batch is
    used twice: in the network, and in a copy whose batch norms have the statistics of these batches. There each channel
    is as active as in training.

    Not refitted are layers called more than once, with shared or computed weights, grouped transposed convolutions, and
    classes other than torch's own.

    Args:
        model: the original; not changed.
        slim: the result of `apply(model, plan)`; not changed.
        plan: the plan between the two.
        data: unlabelled batches of inputs: some hundred images that are representative of later ones.
        ridge: above 0. Penalty on changes of weights; use less with more data.

    Returns:
        The refitted copy, in the mode of `slim`.

    Raises:
        RequestError: no batch, one that the model fails on, or a ridge that is not positive.
        PlanError: `slim` is not the model cut by the plan.
        TraceError: the model runs different layers on different batches.

    Example:
        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
        >>> batches = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        >>> slim, plan = ts.prune(model, batches[0], macs=0.5)
        >>> better = ts.compensate(model, slim, plan, batches)
        >>> error = lambda network: (network(batches[0]) - model(batches[0])).square().mean()
        >>> bool(error(better) < error(slim))
        True
    """
    model, new = unwrap(model), copy_model(unwrap(slim))
    batches = list_batches(data)
    if not isinstance(ridge, int | float) or not 0 < ridge < float("inf"):
        raise RequestError(f"compensate: ridge={ridge!r} found, a number above 0 wanted; try {RIDGE}")
    _check(model, new, plan)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _refit_all(model, new, plan, batches, ridge)
    return new


def _refit_all(model: nn.Module, new: nn.Module, plan: Plan, batches: Sequence[Inputs], ridge: float) -> None:
    """Refit the slim network's layers in order to the original's outputs, several per pass if memory allows."""
    layers, norms, sizes = _order(model, batches[0])
    first = next((index for index, name in enumerate(layers) if _inputs_lost(model, new, name)), len(layers))
    fits = [name for name in layers[first:] if _fits(model, new, name)]
    originals, cuts = [model], [new]
    if any(has_running_statistics(module) for module in model.modules()):
        originals.append(recalibrated(model, batches))
        cuts.append(_sharing(new, apply(originals[1], plan)))
    for chunk in _chunks(fits, {name: size * len(batches) * len(cuts) for name, size in sizes.items()}):
        outputs = _outputs(originals, chunk, plan, batches)

        def refit_layer(name: str, inputs: list[Tensor], outputs: dict[str, list[Tensor]] = outputs) -> None:
            _solve(cuts, name, norms.get(name), inputs, outputs.pop(name), ridge)

        visit_in_order(cuts, chunk, batches, refit_layer)


def _chunks(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Lists of layers, in order, whose outputs fit in memory."""
    chunk: list[str] = []
    for name in names:
        if chunk and sum(sizes[each] for each in chunk) + sizes[name] > MAX_STORED_BYTES:
            yield chunk
            chunk = []
        chunk.append(name)
    yield chunk


def _outputs(networks: Sequence[nn.Module], names: Sequence[str], plan: Plan,
             batches: Sequence[Inputs]) -> dict[str, list[Tensor]]:
    """Outputs of layers on the batches, in each network in turn: rows (positions, N) of the kept channels."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    samplers = {name: OutputSampler(_spec(networks[0], name)) for name in names}
    for network in networks:
        with ExitStack() as stack:
            for name, sampler in samplers.items():
                def record(_: nn.Module, args: tuple[Any, ...], y: Tensor, name: str = name,
                           sampler: OutputSampler = sampler) -> None:
                    # Cloned against later in-place operations.
                    outputs[name].extend(_kept(wide(rows), sampler.spec, plan, name).clone() for rows in sampler(y)
                                         if y.numel())

                stack.enter_context(network.get_submodule(name).register_forward_hook(record))
            stack.enter_context(evaluating(network))
            for index, batch in enumerate(batches):
                call_on_batch(network, batch, index)
    return outputs


# --- the layers to fit --------------------------------------------------------------------------------------

def _check(model: nn.Module, slim: nn.Module, plan: Plan) -> None:
    wanted = {name: value.shape for name, value in apply(model, plan).state_dict().items()}
    shapes = {name: value.shape for name, value in slim.state_dict().items()}
    wrong = next((name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name)), None)
    if wrong is not None:
        raise PlanError(f"`{wrong}`: the slim network has {tuple(shapes.get(wrong, ()))}, the plan makes "
                        f"{tuple(wanted.get(wrong, ()))} of the model's; give the model, its plan, and what "
                        "apply(model, plan) gave")


def _order(model: nn.Module, inputs: Inputs) -> tuple[list[str], dict[str, str], dict[str, int]]:
    """Layers that run once, in call order; the batch norm after each, and the bytes of its output rows."""
    made: dict[int, tuple[str, Tensor]] = {}
    norms: dict[str, str] = {}
    sizes: dict[str, int] = {}
    specs = {name: spec for name, module in model.named_modules() if (spec := spec_of(module)) is not None}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name in specs:
                def note_output(_: nn.Module, args: tuple[Any, ...], y: Tensor, name: str = name) -> None:
                    made[id(y)] = name, y
                    positions = prod(y.shape[y.dim() - specs[name].dims:])
                    sizes[name] = y.numel() * min(positions, PLACES) // max(positions, 1) * wide(y[:0]).element_size()
                stack.enter_context(module.register_forward_hook(note_output))
            elif isinstance(module, _BatchNorm):
                def note_reader(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                    if args and id(args[0]) in made:
                        norms[made[id(args[0])][0]] = name
                stack.enter_context(module.register_forward_pre_hook(note_reader))
        calls = call_counts(model, list(specs), inputs)
    shared = Counter(id(model.get_submodule(name).weight) for name in specs)
    layers = [name for name, count in calls.items()
              if count == 1 and shared[id(model.get_submodule(name).weight)] == 1]
    return layers, norms, sizes


def _inputs_lost(model: nn.Module, slim: nn.Module, name: str) -> bool:
    before, after = spec_of(model.get_submodule(name)), spec_of(slim.get_submodule(name))
    return before is not None and after is not None and before.fan_in != after.fan_in


def _fits(model: nn.Module, slim: nn.Module, name: str) -> bool:
    layer: Any = model.get_submodule(name)
    spec = spec_of(slim.get_submodule(name))
    has_weight = "weight" in layer._parameters and layer.weight.is_floating_point()
    return spec is not None and has_weight and not (spec.transposed and spec.groups > 1)


def _sharing(slim: nn.Module, other: nn.Module) -> nn.Module:
    """The other network with the slim one's parameters, so that refitting changes both."""
    for name, module in slim.named_modules():
        other.get_submodule(name)._parameters.update(module._parameters)
    return other


# --- the fit ------------------------------------------------------------------------------------------------

def _spec(model: nn.Module, name: str) -> LayerSpec:
    spec = spec_of(model.get_submodule(name))
    assert spec is not None
    return spec


def _kept(rows: Tensor, spec: LayerSpec, plan: Plan, name: str) -> Tensor:
    """The kept channels of rows of the original layer's output, (positions, N)."""
    kept = plan.kept.get(f"{name}.weight", {}).get(1 if spec.transposed else 0)
    return rows if kept is None else rows.index_select(1, torch.tensor(kept, device=rows.device))


def _solve(cuts: Sequence[nn.Module], name: str, norm: str | None, inputs: Sequence[Tensor], wanted: Sequence[Tensor],
           ridge: float) -> None:
    """Refit a layer, and without a bias the running means of the next norm; all cuts share the weights."""
    spec = _spec(cuts[0], name)
    inputs = [wide(x) for x in inputs if x.numel()]
    if not spec.dims and inputs and wanted:
        inputs, wanted = [torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])], [torch.cat(list(wanted))]
    items = sum(x.shape[:x.dim() - 1 - spec.dims].numel() for x in inputs)
    if not inputs or items != (len(wanted) if spec.dims else sum(map(len, wanted))):
        return  # their number depends on the data (a detector's regions), and may be 0
    rows = zip(chain.from_iterable(map(InputSampler(spec), inputs)), wanted, strict=True)
    layer: Any = cuts[0].get_submodule(name)
    readers: list[Any] = [] if norm is None else [cut.get_submodule(norm) for cut in cuts]
    means = layer.bias is None and bool(readers) and all(map(has_running_statistics, readers))
    moved = _refit(layer, rows, ridge, centred=means)
    if not layer.weight.isfinite().all():
        raise RequestError(f"compensate: `{name}` reads or gives values that are not finite on the data; look for NaN "
                           "in the batches and the weights")
    for reader in readers if means else ():
        reader.running_mean.sub_(moved.to(reader.running_mean.dtype))


def _refit(layer: Any, rows: Pairs, ridge: float, *, centred: bool) -> Tensor:
    """Set a layer's weights, and its bias if any, to the ridge regression to the outputs.

    Args:
        layer: a convolution or linear layer; changed in place.
        rows: of its filters' inputs and target outputs (see `sampled`).
        ridge: times the mean square of each weight's input.
        centred: whether the next norm corrects the mean of the outputs.

    Returns:
        Mean target output minus mean output without a bias, (N,); 0 unless there is a bias or `centred`.
    """
    spec = spec_of(layer)
    assert spec is not None
    weight = filters_first(layer.weight, spec.groups, spec.transposed)
    filters = weight.double().reshape(spec.groups, spec.outputs // spec.groups, -1)
    moments = moments_of(filters, rows, spec.bias or centred)
    squares = moments.squares
    # Weights with zero inputs do not change.
    costs = ridge * squares + torch.finfo(torch.float32).eps * squares.mean(1, keepdim=True) + TINY
    best = moments.best(filters, costs)
    layer.weight.copy_(torch_layout(best.reshape(weight.shape), spec))
    moved = moments.missing(best)
    if spec.bias:
        layer.bias.copy_(moved)
    return moved if spec.bias or centred else torch.zeros_like(moved)
