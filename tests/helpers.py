"""What several test files share: random statistics, small networks, and an oracle that owes nothing to the library."""

from __future__ import annotations

import copy
import math
import random
import signal
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from torchslim.surgery.plans import Plan

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

Call = Callable[..., tuple[int, str, str]]
"""The command line, called in this process: exit status, stdout, stderr (the fixture `call`)."""


def in_turn(cases: Iterable[Any], daily: Container[Any]) -> list[Any]:
    """Cases of a parametrised test: those that `daily` holds run every time, the others in `make nightly`."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)),
                         marks=() if case in daily else pytest.mark.nightly) for case in cases]


def random_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep signals at their size, and random biases and norms: no two channels alike, none silent."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, scale: float) -> None:
        tensor.copy_(mean + scale * torch.randn(tensor.shape, generator=numbers, dtype=torch.float64))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _ConvNd | nn.Linear):
                normal(module.weight, 0.0, math.sqrt(2 / module.weight[0].numel()))
                if module.bias is not None:
                    normal(module.bias, 0.0, 0.3)
            elif isinstance(module, _NormBase):
                if module.weight is not None:
                    normal(module.weight, 1.0, 0.2)
                    normal(module.bias, 0.0, 0.3)
                if module.running_mean is not None:
                    normal(module.running_mean, 0.0, 0.3)
                    normal(module.running_var, 0.0, 0.2)
                    module.running_var.exp_()
        for parameter in model.parameters():
            # What starts constant: zeroed scales, layer scales of a millionth, the scales of other norms.
            first = parameter.flatten()[0]
            if parameter.numel() > 1 and (parameter == first).all():
                normal(parameter, float(first) if abs(first) > 0.1 or first == 0 else 0.3, 0.2)
    return model


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in a model's output."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors(item)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors(item)


def silenced_oracle(model: nn.Module, plan: Plan, makers: bool = False) -> nn.Module:
    """A float64 copy of the original in which nothing reads a removed channel, and with `makers` nothing makes one.

    Made from `plan.kept` and the types of the modules alone.
    """
    silenced = copied(model).double().eval()
    for name, dims in plan.kept.items():
        owner, _, attribute = name.rpartition(".")
        home = silenced.get_submodule(owner.removesuffix(".parametrizations.weight"))
        if _computes(home, name):
            _deafen(home, dims, 1 if name in plan.grouped else getattr(home, "groups", 1))
            continue
        if isinstance(home, nn.RNNBase | nn.RNNCellBase) and 1 in dims:
            with torch.no_grad():
                weight = getattr(home, attribute)
                weight[:, _missing(dims[1], weight.shape[1])] = 0
        if makers and 0 in dims and isinstance(home, _ConvNd | nn.Linear | nn.MultiheadAttention) and not isinstance(
                home, _ConvTransposeNd):
            # No weight reads maps that are multiplied with each other, as queries and keys.
            with torch.no_grad():
                made = getattr(home, attribute)
                made[_missing(dims[0], len(made))] = 0
        if attribute == "weight":
            for layer in silenced.modules():
                if layer is home or getattr(layer, "weight", None) is home.weight:
                    _silence(layer, dims)
    return silenced


def _silence(layer: nn.Module, dims: Mapping[int, tuple[int, ...]]) -> None:
    """Zeros in a layer's own weight, where it reads what is removed."""
    with torch.no_grad():
        if isinstance(layer, _ConvTransposeNd) and 0 in dims:
            if layer.groups < layer.in_channels or layer.weight.shape[1] > 1:  # a depthwise one passes its channels on
                layer.weight[_missing(dims[0], layer.in_channels)] = 0
        elif isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd) and 1 in dims:
            filters, width = layer.out_channels // layer.groups, layer.in_channels // layer.groups
            for channel in _missing(dims[1], layer.in_channels):
                group = channel // width
                layer.weight[group * filters:(group + 1) * filters, channel % width] = 0
        elif isinstance(layer, nn.Linear) and 1 in dims:
            layer.weight[:, _missing(dims[1], layer.in_features)] = 0


def _computes(layer: nn.Module, name: str) -> bool:
    """Whether a layer computes its weight, of this tensor: zeros in the one need not be zeros in the other.

    A layer of a test's own says with `reads` which of its tensors reads its input.
    """
    if name.rpartition(".")[2] == getattr(layer, "reads", None):
        return True
    if not isinstance(layer, _ConvNd | nn.Linear):
        return False
    changed = not type(layer).__module__.startswith("torch.nn.modules.") and name.endswith(".weight")
    return changed or ".parametrizations.weight.original" in name or name.endswith(("weight_v", "weight_orig"))


def _deafen(layer: nn.Module, dims: Mapping[int, tuple[int, ...]], groups: int) -> None:
    """Let a layer see zeros where a removed channel was; all groups of a computed weight keep the same inputs."""
    reads = 0 if isinstance(layer, _ConvTransposeNd) else 1
    if reads not in dims:
        return
    last = isinstance(layer, nn.Linear)

    def silence(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        channels = args[0].dim() - 1 if last else 1
        width = args[0].shape[channels] // groups
        gone = [group * width + place for group in range(groups) for place in _missing(dims[reads], width)]
        return (args[0].index_fill(channels, torch.tensor(gone, dtype=torch.long), 0), *args[1:])

    layer.register_forward_pre_hook(silence)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where hooks left the results of a computation behind (old-style weight norm)."""
    left = [t for m in model.modules() for t in m.__dict__.values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in left})


def _missing(kept: tuple[int, ...], size: int) -> list[int]:
    return sorted(set(range(size)) - set(kept))


def oracle_error(model: nn.Module, slim: nn.Module, plan: Plan, *inputs: Tensor) -> float:
    """The largest error of `slim` against the silenced original, relative to its largest output, in float64.

    Where silencing the readers does not do, what makes the removed channels is silenced, too.
    """
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    error = math.inf
    for makers in (False, True):
        with torch.no_grad():
            expected = list(tensors(silenced_oracle(model, plan, makers)(*wide)))
            found = list(tensors(copied(slim).double().eval()(*wide)))
        assert [t.shape for t in expected] == [t.shape for t in found]
        errors = [float((a - b).abs().max() / a.abs().max().clamp_min(1e-300))
                  for a, b in zip(expected, found, strict=True)]
        if not any(map(math.isnan, errors)):
            error = min(error, max(errors))
        if error < 1e-9:
            break
    return error


def counted_macs(model: nn.Module, *inputs: Tensor, **keywords: Tensor) -> int:
    """Multiply-adds as torch's own counter has them, from a run on the meta device."""
    def to_meta(named: Any) -> dict[str, Tensor]:
        return {name: tensor.detach().to("meta") for name, tensor in named}

    state = {**to_meta(model.named_parameters()), **to_meta(model.named_buffers())}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            torch.func.functional_call(model, state, tuple(x.to("meta") for x in inputs),
                                       {name: x.to("meta") for name, x in keywords.items()})
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def check_training(model: nn.Module, *inputs: Tensor) -> set[str]:
    """One step forward and backward in train mode; the parameters that got a gradient, each of them finite."""
    trained = copied(model).train()
    outputs = [t for t in tensors(trained(*inputs)) if t.is_floating_point()]
    torch.stack([t.float().square().mean() for t in outputs]).sum().backward()
    reached = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
    for name, gradient in reached.items():
        assert torch.isfinite(gradient).all(), name
    return set(reached)


class Calls(nn.Module):
    """A network whose forward pass is a function of its children, so that a test fits on a few lines."""

    def __init__(self, forward: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


def conv(cin: int, cout: int, k: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size of the map."""
    return nn.Conv2d(cin, cout, k, padding=k // 2, **options)


class Untouched:
    """Everything of a model that a reader of it must leave as it was, and the random state; `check` compares."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self._now()
        self.bits = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _now(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, module in self.model.named_modules():
            for key, item in module.__dict__.items():
                shown: Any = item if isinstance(item, bool | int | float | str | tuple | type(None)) else id(item)
                if isinstance(item, dict):
                    shown = (id(item), [(k, id(v)) for k, v in item.items()])
                elif isinstance(item, list):
                    shown = (id(item), [id(v) for v in item])
                found[f"{name}.{key}"] = shown
        for name, tensor in self._tensors().items():
            found[f"{name} (tensor)"] = (id(tensor), tensor.requires_grad, tensor.grad is None, tensor.device,
                                         tensor.stride(), tensor.data_ptr())
        found["torch's numbers"] = torch.get_rng_state().tolist()
        found["numpy's numbers"] = [str(part) for part in numpy.random.get_state()]
        found["python's numbers"] = random.getstate()
        found["global hooks"] = [len(hooks) for hooks in (
            torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)]
        return found

    def check(self) -> None:
        """Raise where something is not as it was."""
        now = self._now()
        assert {key for key in self.before.keys() | now.keys() if self.before.get(key) != now.get(key)} == set()
        for name, tensor in self._tensors().items():
            if not tensor.is_meta:
                assert bits(tensor) == bits(self.bits[name]), name


def bits(tensor: Tensor) -> bytes:
    """A tensor's elements, byte for byte: not-a-number equals itself."""
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def heeds_ctrl_c() -> None:
    """For `Popen(preexec_fn=)`: what a shell started in the background ignores, its children would ignore too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
