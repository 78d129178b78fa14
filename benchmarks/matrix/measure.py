"""One network, cut and tried: its row of the matrix, sent piece by piece so that a time limit loses little.

Everything but plan and apply runs with inputs of its own: other pictures, and two of them, as a user's would be.
"""

from __future__ import annotations

import math
import re
import resource
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

import torchslim
from matrix.field import BUILDERS
from matrix.networks import DETECTION, FLOW, QUANTIZABLE, Network
from torchslim.store.loading import default_input
from torchslim.surgery.plans import Plan
from torchslim.utils.inputs import Inputs, arguments, tensors_in

MACS = 0.25
EXACT = 1e-9
Row = dict[str, Any]


def measure(network: Network, memory: int, send: Callable[[Row], None]) -> None:
    """Measure a network and send its row, more complete each time.

    Args:
        network: which.
        memory: bytes that this process may take beyond what it has now; more is an error in the row.
        send: called with the row before each stage (`row["stage"]` says which is next) and at the end.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _limit_memory(memory)
    row: Row = {"stage": "build"}
    try:
        for _ in _stages(network, row):
            send(row)
    except Exception as error:
        row["error"] = f"{row['stage']}: {type(error).__name__}: {_one_line(str(error))}"
    row["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row["stage"] = "done"
    send(row)


def _stages(network: Network, row: Row) -> Any:
    yield
    size = network.size or default_input(network.name)
    proof = network.proof or size
    original = lively(build(network).eval(), make_inputs(network, proof, 2))
    inputs = make_inputs(network, size, 1)
    row |= {"size": size, "proof": proof, "params": sum(p.numel() for p in original.parameters()), "stage": "plan"}
    yield
    start = time.perf_counter()
    plan = torchslim.plan(original, inputs, macs=MACS, allow_approximate=network.approximate, strict=False)
    row["plan_seconds"] = time.perf_counter() - start
    row["stage"] = "apply"
    yield
    slim = torchslim.apply(original, plan)
    row["seconds"] = time.perf_counter() - start
    row |= _described(plan, row["params"], size[0])
    row["stage"] = "works"
    yield
    pair = make_inputs(network, proof, 2)
    row["works"] = _shapes(original, pair, network) == _shapes(slim, pair, network)
    row["stage"] = "exact"
    yield
    row["error_size"] = _or_text(lambda: torchslim.verify(original, slim, plan, make_inputs(network, proof, 1)))
    row["exact"] = isinstance(row["error_size"], float) and row["error_size"] <= EXACT
    row["stage"] = "trains"
    yield
    row["trains"] = _or_text(lambda: _train_step(slim, pair, network))
    if row["trains"] is not True:
        row["original_trains"] = _or_text(lambda: _train_step(original, pair, network))


# --- networks and inputs ------------------------------------------------------------------------------------

def build(network: Network) -> nn.Module:
    """The network, with random weights."""
    library, _, name = network.name.partition(":")
    if network.section == QUANTIZABLE:
        from torchvision import models

        initialised = {"init_weights": True} if "inception" in name or "googlenet" in name else {}
        model: nn.Module = models.get_model(name, weights=None, quantize=False, **initialised)
        return model
    if library in BUILDERS:
        return BUILDERS[library](name, **network.options)
    return torchslim.create_model(f"{library}:{name}", **network.options)


def lively(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Random weights that keep signals at their size, and nothing constant.

    As built, networks hold statistics of zero and one, scales of zero and layer scales of a millionth: whole branches
    would be silent, and a wrong cut of theirs would go unheard.
    """
    numbers = torch.Generator().manual_seed(0)
    weights = {id(module.weight): math.sqrt(2 / module.weight[0].numel()) for module in model.modules()
               if isinstance(module, _ConvNd | nn.Linear) and isinstance(module.weight, nn.Parameter)}
    with torch.no_grad():
        for parameter in model.parameters():
            first = float(parameter.flatten()[0]) if parameter.numel() else 1.0
            if id(parameter) in weights:
                parameter.normal_(0.0, weights[id(parameter)], generator=numbers)
            elif parameter.is_floating_point() and bool((parameter == first).all()):
                # Biases and zeroed scales around zero, layer scales around 0.3, norms' scales around one.
                center = first if abs(first) > 0.1 or first == 0 else 0.3
                parameter.add_(torch.randn(parameter.shape, generator=numbers), alpha=0.2).add_(center - first)
        _random_statistics(model, inputs, numbers)
    return model


def _random_statistics(model: nn.Module, inputs: Inputs, numbers: torch.Generator) -> None:
    """Statistics of batch norms around those of the network's own signals.

    Around zero and one, signals would grow from layer to layer, and with them the rounding errors of a deep network.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.training = True
    args, kwargs = arguments(inputs)
    if norms:
        model(*args, **kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.training = False
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        variance.clamp_(min=1e-3)
        mean.add_(0.3 * variance.sqrt() * torch.randn(mean.shape, generator=numbers))
        variance.mul_((0.2 * torch.randn(variance.shape, generator=numbers)).exp())


def make_inputs(network: Network, size: tuple[int, ...], batch: int) -> Inputs:
    """Random pictures in the form in which the network takes them."""
    if network.section == DETECTION:
        return [torch.rand(size) for _ in range(batch)]
    if network.section == FLOW:
        return {"image1": torch.randn(batch, *size), "image2": torch.randn(batch, *size), "num_flow_updates": 3}
    return torch.randn(batch, *size)


def _targets(pictures: list[Tensor]) -> list[dict[str, Tensor]]:
    """One object in each picture, with all that the detectors may ask for."""
    found = []
    for picture in pictures:
        height, width = picture.shape[-2:]
        points = torch.tensor([width / 2, height / 2, 1.0]).repeat(1, 17, 1)
        mask = torch.zeros(1, height, width, dtype=torch.uint8)
        mask[:, height // 4: height // 2, width // 4: width // 2] = 1
        found.append({"boxes": torch.tensor([[width / 4, height / 4, width / 2, height / 2]]),
                      "labels": torch.ones(1, dtype=torch.int64), "masks": mask, "keypoints": points})
    return found


# --- what is found ------------------------------------------------------------------------------------------

def _described(plan: Plan, params: int, colours: int) -> Row:
    (budget,) = plan.budgets
    reasons: dict[str, Row] = {}
    for entry in plan.left_alone:
        if entry.reason == "the network's output" or (entry.channels == colours and entry.reason.startswith("reads ")):
            continue  # outputs and pictures stay in every network
        known = reasons.setdefault(_short(entry.reason), {"channels": 0, "groups": 0, "example": entry.reason[:300]})
        known["channels"] += entry.channels
        known["groups"] += 1
    ordered = dict(sorted(reasons.items(), key=lambda item: -item[1]["channels"])[:8])
    unusual = [note for note in plan.notes if not note.startswith(("macs: ", "approximate: "))]
    return {"macs": budget.before, "macs_kept": budget.share, "params_kept": plan.predicted["params"] / params,
            "frozen": ordered, "notes": unusual,
            "mixes": any(entry.reason.startswith("channels are ") and "_softmax" not in entry.reason
                         for entry in plan.left_alone)}


def _short(reason: str) -> str:
    """A reason without the layers' names, so that equal ones can be counted."""
    text = re.sub(r" (by|in) `[^`]*` \((?:aten\.)?(\w+)\)", r" \1 \2", reason)
    text = re.sub(r"`[^`]*`", "a layer", text)
    return _one_line(text)[:110]


def _shapes(model: nn.Module, inputs: Inputs, network: Network) -> list[tuple[int, ...]]:
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        output = model.eval()(*args, **kwargs)
    # How many objects a detector finds is no matter of its form.
    skipped = int(network.section == DETECTION)
    return [tuple(tensor.shape[skipped:]) for tensor in tensors_in(output)]


def _train_step(model: nn.Module, inputs: Inputs, network: Network) -> bool:
    """One step forward and backward in train mode, auxiliary heads and losses included."""
    args, kwargs = arguments(inputs)
    model.train()
    if network.section == DETECTION:
        losses = list(tensors_in(model(*args, _targets(args[0]))))
    else:
        losses = [t.float().square().mean() for t in tensors_in(model(*args, **kwargs)) if t.requires_grad]
    loss = torch.stack([loss.reshape(()) for loss in losses]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not torch.isfinite(loss) or not gradients:
        raise ArithmeticError("the loss is not finite" if gradients else "no gradients")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise ArithmeticError("a gradient is not finite")
    return True


def _or_text(function: Callable[[], Any]) -> Any:
    """What a stage gives, or how it failed: the stages after it are still of interest."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {_one_line(str(error))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _limit_memory(extra: int) -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, now + extra))


def approximate_too(network: Network, row: Mapping[str, Any]) -> Network | None:
    """The same network cut with `allow_approximate=True`, where that would set channels free."""
    return replace(network, approximate=True) if row.get("mixes") and not network.approximate else None
