"""Put back what a cut has lost, before any training: model + its cut + pictures -> refitted weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.compensation.moments import Pair, moments_of, wide
from torchslim.compensation.recalibration import arriving, calls_of, counts, settled, together
from torchslim.errors import PlanError, RequestError
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import Plan
from torchslim.utils.copying import copy_model
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, list_batches, unwrap
from torchslim.utils.layer_spec import filters_first, spec_of, torch_layout

RIDGE = 0.3
"""What it costs to leave the weights of the cut, in mean squares of what each weight reads."""

TINY = torch.finfo(torch.float64).tiny


@torch.inference_mode(False)
def compensate(model: nn.Module, slim: nn.Module, plan: Plan, data: Iterable[Inputs], *,
               ridge: float = RIDGE) -> nn.Module:
    """A copy of a slim network whose layers are refitted to give what the original's gave. No labels, no training.

    Each convolution or linear layer from the first that lost inputs on is solved by ridge regression, in the order in
    which they run: from what it reads in the slim network, whose layers before it are refitted already, to what the
    original's gave there, on all batches at once (channel pruning, He et al. 2017, section 3.1; asymmetric
    reconstruction, Zhang et al. 2015, section 3.2). What the channels that are gone gave on average goes into the bias,
    or into the mean that the batch norm behind the layer takes off. Call it after `verify`: a refitted network is no
    longer the silenced original.

    A few pictures excite few of a network's features, and weights that only suit these suit nothing else. So every
    batch is seen twice: as it is, and through a copy of the network whose batch norms have the statistics of these very
    batches. There each channel is as active as it was in training, when the statistics were taken.

    Layers that are called more than once in a run, with shared or computed weights, transposed in groups, and of
    classes other than torch's own stay as the cut left them.

    Args:
        model: the original; it is left as it was.
        slim: the network that `apply(model, plan)` gave; it is left as it was.
        plan: the plan between the two.
        data: batches of inputs, unlabelled; some hundred pictures will do, as like those to come as can be had.
        ridge: above 0. How much a weight holds on to what it was: less where the data are many.

    Returns:
        The refitted copy, in the mode of `slim`.

    Raises:
        RequestError: no batch, one that the model fails on, or a ridge that is not positive.
        PlanError: `slim` is not what the plan makes of the model.
        TraceError: the model runs other layers on one batch than on another.

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
    """Solve layer after layer while the original and the slim network run side by side on all batches."""
    layers, norms = _order(model, batches[0])
    first = next((place for place, name in enumerate(layers) if _inputs_lost(model, new, name)), len(layers))
    fits = [name for name in layers[first:] if _fits(model, new, name)]
    views = [(model, new)]
    if any(counts(module) for module in model.modules()):
        active = settled(model, batches)
        views.append((active, _sharing(new, apply(active, plan))))
    networks = [network for view in views for network in view]
    count = len(batches)

    def meet(name: str, brought: list[Tensor]) -> None:
        pairs: list[Pair] = []
        for place in range(0, len(brought), 2 * count):
            outputs, inputs = brought[place:place + count], brought[place + count:place + 2 * count]
            pairs += [(wide(x), _kept(wide(y), model.get_submodule(name), plan, name))
                      for x, y in zip(inputs, outputs, strict=True)]
        _solve([cut for _, cut in views], name, norms.get(name), pairs, ridge)

    with ExitStack() as stack:
        stack.enter_context(evaluating(*networks))
        watched = [stack.enter_context(arriving(network, fits, inside=place % 2 == 1))
                   for place, network in enumerate(networks)]
        together(list(zip(watched, networks, strict=True)), batches, meet)


# --- what there is to fit -----------------------------------------------------------------------------------

def _check(model: nn.Module, slim: nn.Module, plan: Plan) -> None:
    wanted = {name: value.shape for name, value in apply(model, plan).state_dict().items()}
    found = {name: value.shape for name, value in slim.state_dict().items()}
    wrong = next((name for name in {**wanted, **found} if wanted.get(name) != found.get(name)), None)
    if wrong is not None:
        raise PlanError(f"`{wrong}`: the slim network has {tuple(found.get(wrong, ()))}, the plan makes "
                        f"{tuple(wanted.get(wrong, ()))} of the model's; give the model, its plan, and what "
                        "apply(model, plan) gave")


def _order(model: nn.Module, inputs: Inputs) -> tuple[list[str], dict[str, str]]:
    """Layers in the order in which they run, those that run once, and the batch norm that reads each."""
    made: dict[int, tuple[str, Tensor]] = {}
    norms: dict[str, str] = {}
    handles = []
    for name, module in model.named_modules():
        if spec_of(module) is not None:
            handles.append(module.register_forward_hook(
                lambda _, args, output, name=name: made.__setitem__(id(output), (name, output))))
        elif isinstance(module, _BatchNorm):
            def note(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                if args and id(args[0]) in made:
                    norms[made[id(args[0])][0]] = name
            handles.append(module.register_forward_pre_hook(note))
    try:
        calls = calls_of(model, [name for name, module in model.named_modules() if spec_of(module) is not None], inputs)
    finally:
        for handle in handles:
            handle.remove()
    shared = Counter(id(module.weight) for module in model.modules() if spec_of(module) is not None)
    layers = [name for name, count in calls.items()
              if count == 1 and shared[id(model.get_submodule(name).weight)] == 1]
    return layers, norms


def _inputs_lost(model: nn.Module, slim: nn.Module, name: str) -> bool:
    before, after = spec_of(model.get_submodule(name)), spec_of(slim.get_submodule(name))
    return before is not None and after is not None and before.fan_in != after.fan_in


def _fits(model: nn.Module, slim: nn.Module, name: str) -> bool:
    layer: Any = model.get_submodule(name)
    spec = spec_of(slim.get_submodule(name))
    has_weight = "weight" in layer._parameters and layer.weight.is_floating_point()
    return spec is not None and has_weight and not (spec.transposed and spec.groups > 1)


def _sharing(slim: nn.Module, other: nn.Module) -> nn.Module:
    """The other network with the very parameters of the slim one: what is solved for one is so for both."""
    for name, module in slim.named_modules():
        other.get_submodule(name)._parameters.update(module._parameters)
    return other


# --- the fit ------------------------------------------------------------------------------------------------

def _kept(y: Tensor, layer: nn.Module, plan: Plan, name: str) -> Tensor:
    """Of what the original's layer gave, the channels that the slim one still makes."""
    spec = spec_of(layer)
    assert spec is not None
    kept = plan.kept.get(f"{name}.weight", {}).get(1 if spec.transposed else 0)
    if kept is None:
        return y
    return y.index_select(-spec.dims - 1 if spec.dims else -1, torch.tensor(kept, device=y.device))


def _solve(cuts: Sequence[nn.Module], name: str, norm: str | None, pairs: Sequence[Pair], ridge: float) -> None:
    """Refit a layer, and where it has no bias the means of the norm that reads it; all cuts share the weights."""
    pairs = [(x, y) for x, y in pairs if x.numel() or y.numel()]
    if not pairs or any(x.shape[:1] != y.shape[:1] for x, y in pairs):
        return  # the data decides how many there are (a detector's regions), and may leave none
    layer: Any = cuts[0].get_submodule(name)
    readers: list[Any] = [] if norm is None else [cut.get_submodule(norm) for cut in cuts]
    means = layer.bias is None and all(counts(reader) for reader in readers) and bool(readers)
    moved = refit(layer, pairs, ridge, centred=means)
    if not layer.weight.isfinite().all():
        raise RequestError(f"compensate: `{name}` reads or gives values that are not finite on the data; look for NaN "
                           "in the batches and the weights")
    for reader in readers if means else ():
        reader.running_mean.sub_(moved.to(reader.running_mean.dtype))


@torch.no_grad()
def refit(layer: Any, pairs: Sequence[Pair], ridge: float, *, centred: bool) -> Tensor:
    """Give a layer the weights, and the bias if it has one, that bring it nearest to the outputs.

    Args:
        layer: a convolution or linear layer; changed in place.
        pairs: batches of what it reads and what it should give.
        ridge: times the mean square of what each weight reads.
        centred: what the outputs are on average is seen to elsewhere.

    Returns:
        The mean of what it should give less that of what it gives without a bias, (N,); 0 unless there is a bias or
        `centred`.
    """
    spec = spec_of(layer)
    assert spec is not None
    weight = filters_first(layer.weight, spec.groups, spec.transposed)
    rows = weight.double().reshape(spec.groups, spec.outputs // spec.groups, -1)
    moments = moments_of(spec, rows, pairs, spec.bias or centred)
    squares = moments.squares
    # A weight that reads nothing stays as it was.
    costs = ridge * squares + torch.finfo(torch.float32).eps * squares.mean(1, keepdim=True) + TINY
    best = moments.best(rows, costs)
    layer.weight.copy_(torch_layout(best.reshape(weight.shape), spec))
    moved = moments.missing(best)
    if spec.bias:
        layer.bias.copy_(moved)
    return moved if spec.bias or centred else torch.zeros_like(moved)
