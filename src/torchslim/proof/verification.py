"""Verification of a cut: removing channels must equal silencing them.

The original, with the weights of every reader of a removed channel set to zero, computes what the slim network
computes: a correct cut agrees to rounding. Both sides run as float64 copies, in eval mode, on the given inputs, and are
compared at the network's outputs and at every layer on the way there: each convolution, linear layer and norm must
give, in the channels that it keeps, what the silenced original gives. So a wrong cut cannot hide where a network's
outputs barely depend on its inputs, or where a detector finds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import _disable_current_modes

from torchslim.errors import PlanError, ProofError
from torchslim.proof.float64 import in_float64, inputs_in_float64
from torchslim.proof.reference import KeptChannels, kept_channels, kept_channels_mode, needs_reference
from torchslim.surgery.plans import Plan
from torchslim.surgery.width_attributes import weight_of
from torchslim.utils.attention import attention_of_any_width
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, arguments, tensors_in, unwrap
from torchslim.utils.modules import tensors_of
from torchslim.utils.preserve import plain_context

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
TOLERANCE = 1e-6
"""Largest relative error at which a cut is accepted; a correct one is at about 1e-15."""


def verify(model: nn.Module, slim: nn.Module, plan: Plan, inputs: Inputs) -> float:
    """The largest relative error of `slim` against the silenced `model`, over all outputs and layers.

        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> plan = ts.plan(model, x, macs=0.5)
        >>> ts.verify(model, ts.apply(model, plan), plan, x) < 1e-12
        True

    The error of a tensor is its largest absolute difference, over the largest absolute value of the silenced
    original's. The proof holds for the network as cut: fine-tuning changes the weights, and with them the outputs. An
    approximate cut (`allow_approximate=True`) is compared with an original whose norms mix only the kept channels.

    Args:
        model: the original, untouched since the plan was made.
        slim: what `apply(model, plan)` gave.
        plan: the plan.
        inputs: as given to `plan`; other values and other image sizes are as good.

    Raises:
        ProofError: outputs differ in number or shape, or are not finite.
        PlanError: the plan names tensors that the model does not have.
    """
    return max((difference.error for difference in differences(model, slim, plan, inputs)), default=0.0)


@dataclass(frozen=True)
class Difference:
    """How far a layer's output, or one of the network's, is from the silenced original's (relative)."""

    where: str
    error: float


@torch.inference_mode(False)
def differences(model: nn.Module, slim: nn.Module, plan: Plan, inputs: Inputs) -> list[Difference]:
    """The errors whose maximum `verify` returns: each call of each layer in the order of the run, then the outputs."""
    silenced = silence(copy_model(unwrap(model)).double(), plan)
    slim_copy = copy_model(unwrap(slim)).double()
    layers: dict[str, list[Tensor]] = {}
    inputs64 = inputs_in_float64(inputs)
    with in_float64():
        mixing = (kept_channels_mode(silenced, inputs64, plan)
                  if _needs_kept_channels_mode(silenced, inputs64, plan) else nullcontext())

    @cache
    def channels() -> KeptChannels:
        with in_float64():
            return kept_channels(silenced, inputs64, plan)

    watched = _watch_layers(silenced, lambda name, _, output: layers.setdefault(name, []).append(output))
    call = arguments(inputs64)  # copies, made outside the mode, which counts operations
    with watched:
        expected = outputs_of(silenced, *call, within=mixing)
    layer_differences: list[Difference] = []
    # The plan lists a tied tensor under its first name.
    names: dict[Tensor, str] = {
        tensor: name for name, tensor in reversed(list(silenced.named_parameters(remove_duplicate=False)))}
    outputs_seen: Counter[str] = Counter()

    def compare(name: str, layer: nn.Module, output: Tensor) -> None:
        if not layers.get(name):
            raise ProofError(f"verify: `{name}` runs more often in the slim network than in the original")
        part = expected = layers[name].pop(0)
        if not isinstance(layer, _RECURRENT):
            weight = weight_of(silenced.get_submodule(name))
            part = _kept_part(expected, layer, weight, plan.kept.get(names.get(weight, ""), {}))
        if part.shape != output.shape:  # its weight does not run along the channels that were cut
            part = channels().part_of_output(name, outputs_seen[name], expected)
        outputs_seen[name] += 1
        # Where a custom layer has other shapes than labels say, only the layers that follow are compared.
        if part.shape == output.shape or _is_torch_layer(layer):
            layer_differences.append(Difference(name, relative_error(part, output, name)))

    with _watch_layers(slim_copy, compare):
        outputs = outputs_of(slim_copy, *arguments(inputs64))
    expected, outputs = ([tensor for place, tensor in enumerate(tensors) if place not in plan.ignored_outputs]
                         for tensors in (expected, outputs))
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in outputs]:
        raise ProofError(f"verify: the slim network's outputs have shapes {[tuple(t.shape) for t in outputs]}, the "
                         f"original's {[tuple(t.shape) for t in expected]}")
    output_differences = [Difference("the output", relative_error(a, b, "the output"))
                          for a, b in zip(expected, outputs, strict=True)]
    return layer_differences + output_differences


def _needs_kept_channels_mode(model: nn.Module, inputs: Inputs, plan: Plan) -> bool:
    """Whether zeros in the readers don't silence all: channels are mixed, or weights are computed from the readers."""
    if plan.settings.get("allow_approximate"):
        return True
    return bool(plan.kept) and needs_reference(model, inputs, {name for name, _ in plan.readers})


def _is_torch_layer(layer: nn.Module) -> bool:
    """True for a layer of one of torch's own classes, parametrised or not."""
    kind = type(layer).__base__ if is_parametrized(layer) else type(layer)
    return kind is not None and kind.__module__.startswith("torch.nn.modules.")


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


@contextmanager
def _watch_layers(model: nn.Module, callback: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Call `callback(name, layer, output)` for each output of each call of each layer that has weights of its own."""

    def hook(name: str) -> Callable[..., None]:
        def after_call(layer: nn.Module, _args: Any, output: Any) -> None:
            # Inside of `torch.vmap` and its kin values are not to be had; there what follows is compared.
            whole = isinstance(output, Tensor) or isinstance(layer, _RECURRENT)
            with _disable_current_modes():  # the mode must not count these operations
                for tensor in tensors_in(output) if whole else ():
                    if not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                        callback(name, layer, tensor.clone())  # a copy: the next layer may work in place
        return after_call

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()
               if isinstance(module, _RECURRENT) or _has_weight(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_weight(module: nn.Module) -> bool:
    """A layer with a weight of its own, computed or not."""
    if is_parametrized(module, "weight"):
        return True
    inner = next(module.children(), None) is not None and not is_parametrized(module)
    return not inner and isinstance(getattr(module, "weight", None), Tensor)


def _kept_part(expected: Tensor, layer: nn.Module, weight: Tensor, kept: Mapping[int, Sequence[int]]) -> Tensor:
    """What the slim layer keeps of the original layer's output; `kept` is the plan for its original `weight`."""
    makes, channels = 0, min(1, expected.dim() - 1)
    if isinstance(layer, _ConvNd):
        # A transposed convolution makes its second dimension; where that is one a group, it goes by its inputs.
        makes = int(isinstance(layer, _ConvTransposeNd) and (layer.groups == 1 or weight.shape[1] > 1))
        channels = expected.dim() + 1 - weight.dim()  # 0 where the maps come without a batch
    elif isinstance(layer, nn.Linear | nn.Bilinear | nn.Embedding | nn.EmbeddingBag):
        makes, channels = int(isinstance(layer, nn.Embedding | nn.EmbeddingBag)), expected.dim() - 1
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):  # over several dimensions, of which any may be cut
        part = expected
        for dim, index in kept.items():
            along = expected.dim() - weight.dim() + dim
            if max(index) >= expected.shape[along]:  # a class of the model's own may lay its channels elsewhere
                return expected
            part = part.index_select(along, torch.tensor(index, device=part.device))
        return part
    if makes not in kept or max(kept[makes]) >= expected.shape[channels]:
        return expected
    return expected.index_select(channels, torch.tensor(kept[makes], device=expected.device))


def outputs_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
               within: AbstractContextManager[Any] | None = None) -> list[Tensor]:
    """The tensors that a float64 model returns in eval mode.

    `within` is a mode that follows the run: it sees the operations as a trace does, after all conversions.
    """
    for module in model.modules():
        module.training = False

    with torch.random.fork_rng(devices=()), plain_context(), in_float64(), attention_of_any_width(model.modules()), (
            within or nullcontext()):
        torch.manual_seed(0)  # where a network draws numbers, both draw the same
        output: Any = model(*args, **kwargs)
    return list(tensors_in(output))


def relative_error(expected: Tensor, output: Tensor, where: str) -> float:
    """The largest difference of two tensors, relative to the largest element of the first.

    Raises:
        ProofError: they differ in shape, or are not finite.
    """
    if expected.shape != output.shape:
        raise ProofError(f"verify: `{where}` gives {tuple(output.shape)} in the slim network, and "
                         f"{tuple(expected.shape)} in the original with the removed channels taken out")
    if not expected.numel():
        return 0.0
    if not (torch.isfinite(expected).all() and torch.isfinite(output).all()):
        raise ProofError(f"verify: {where} is not finite; check the network's weights and the inputs")
    difference = float((expected.double() - output.double()).abs().max())
    return difference / max(float(expected.double().abs().max()), torch.finfo(torch.float64).tiny)
