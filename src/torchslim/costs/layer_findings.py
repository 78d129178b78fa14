"""Findings about how layers are written: biases, norms, widths, kernels, padding, the first and the last layer."""

from __future__ import annotations

import sys
from math import ceil, prod

from torchslim.costs.findings import Finding, Run, elements_accessed, layer_name, num_groups, only_option, worst_first
from torchslim.rules import macs
from torchslim.tracing.graph import Op, Value
from torchslim.utils.formatting import percent, pluralize

_NORMS = frozenset({"aten.native_batch_norm", "aten._native_batch_norm_legit_no_training", "aten.cudnn_batch_norm",
                    "aten.miopen_batch_norm", "aten._batch_norm_no_update"})


def _folding(run: Run) -> list[tuple[Op, Op]]:
    """Convolutions with the batch norm that alone reads their result, in every call of the layer."""
    by_weight: dict[int, list[tuple[Op, Op | None]]] = {}
    for op in run.convolutions:
        readers = run.readers.get(op.output.id, [])
        alone = len(readers) == 1 and readers[0].name in _NORMS and readers[0].argument(3, "running_mean") is not None
        by_weight.setdefault(op.args[1].id, []).append((op, readers[0] if alone else None))
    return [(op, norm) for calls in by_weight.values() if all(norm is not None for _, norm in calls)
            for op, norm in calls if norm is not None]


def useless_bias(run: Run) -> Finding | None:
    """A bias before batch norm is subtracted again with the mean."""
    biases = {op.args[2].name: (float(op.args[2].numel), layer_name(op)) for op, _ in _folding(run)
              if op.args[2] is not None and op.args[2].name}
    if not biases:
        return None
    total = int(sum(number for number, _ in biases.values()))
    return Finding(
        "convolution bias before batch norm", total / run.profile.params, "parameters",
        f"{pluralize(len(biases), 'bias', 'biases')} ({total:,} parameters) that the batch norm behind subtracts again",
        worst_first(list(biases.values())), "build them with bias=False; in a trained network, fold the norm into the "
        "convolution: torch.nn.utils.fusion.fuse_conv_bn_eval(conv, bn)")


def unfused_norms(run: Run) -> Finding | None:
    """At inference a batch norm is a scale and a shift, which the convolution before it can do."""
    norms = [norm for _, norm in _folding(run)]
    access = sum(map(elements_accessed, norms))
    if not norms:
        return None
    return Finding(
        "unfused batch norm at inference", access / run.profile.memory_access, "memory access",
        f"{pluralize(len(norms), 'batch norm')} with {percent(access / run.profile.memory_access)} of the memory "
        f"access{run.time([norm.module for norm in norms])}",
        worst_first([(elements_accessed(norm), layer_name(norm)) for norm in norms]),
        f"nothing in training; to run it, export folds them: `torchslim export {run.model} model.onnx`")


def odd_widths(run: Run) -> Finding | None:
    """Kernels work on blocks of eight channels: what is left over in the last block is computed in vain."""
    ends = {value.id for value in run.graph.outputs}
    padded, spoiled = 0, []
    for op in run.convolutions:
        outputs, inputs = op.args[1].shape[:2]
        alone = num_groups(op) > 1
        rounded_cost = (ceil(outputs / 8) * 8 / outputs) * (1.0 if alone else ceil(inputs / 8) * 8 / inputs)
        if op.args[0].source == "input" or op.output.id in ends:
            rounded_cost = 1.0
        padded += round(macs(op) * rounded_cost)
        if outputs % 8 and rounded_cost > 1:
            spoiled.append((macs(op) * (rounded_cost - 1), f"{layer_name(op)} ({outputs})"))
    rest = run.profile.macs - sum(map(macs, run.convolutions))
    if not spoiled:
        return None
    gain = 1 - run.profile.macs / (padded + rest)
    return Finding(
        "channels that are no multiple of 8", gain, "MACs that blocks of 8 compute",
        f"{pluralize(len(spoiled), 'convolution')}; in blocks of 8, {percent(gain / (1 - gain))} more is computed than "
        "the MACs say",
        worst_first(spoiled), f"`torchslim prune {run.model} --macs 0.9 --round-to 8 --out slim.safetensors`")


def large_kernels(run: Run) -> Finding | None:
    """A k x k kernel costs k / 2 times as much as a pair of 1 x k and k x 1, where inputs and outputs are balanced."""
    saved = []
    for op in run.convolutions:
        outputs, inputs, *kernel = op.args[1].shape
        if len(kernel) != 2 or min(kernel) < 5 or num_groups(op) > 1:
            continue
        batch, _, height, width = op.output.shape
        rows = op.args[0].shape[2]  # the first of the pair leaves them as they are
        pair = batch * width * outputs * (kernel[1] * inputs * rows + kernel[0] * outputs * height)
        if pair < macs(op):
            saved.append((float(macs(op) - pair), op))
    if not saved:
        return None
    sides = sorted({max(op.args[1].shape[2:]) for _, op in saved})
    kernels = "".join(f" --kernels {side}" for side in sides)
    layers = worst_first([(gain, f"{layer_name(op)} ({'x'.join(map(str, op.args[1].shape[2:]))})")
                          for gain, op in saved])
    return Finding(
        "large kernels that factorise", sum(gain for gain, _ in saved) / run.profile.macs, "MACs",
        f"{pluralize(len(saved), 'convolution')} with "
        f"{percent(sum(macs(op) for _, op in saved) / run.profile.macs)} of the MACs"
        f"{run.time([op.module for _, op in saved])}", layers,
        f"`torchslim lighten {run.model} --rules asymmetric{kernels} --ends` shows what pairs save; "
        f"`torchslim.lighten(model, 'asymmetric', inputs, kernels={tuple(sides)}, ends=True)` makes them; train on")


def heavy_ends(run: Run) -> list[Finding]:
    """A first layer or classifier that outweighs the rest."""
    findings = []
    first = next((op for op in run.convolutions if op.args[0].source == "input"), None)
    share = macs(first) / run.profile.macs if first is not None else 0.0
    if first is not None and share > 0.2 and len(run.convolutions) > 1:
        findings.append(Finding(
            "a first layer that dominates", share / 2, "MACs",
            f"{percent(share)} of the MACs, on a map of {'x'.join(map(str, first.output.shape[2:]))}"
            f"{run.time([first.module])}", (layer_name(first),),
            f"halve its width, or let it take larger steps: `torchslim prune {run.model} --macs 0.8"
            f"{only_option([first.module])} --out slim.safetensors`"))
    # Behind the last convolution, of a network that is made of convolutions: others have linear layers all the way.
    convolved = sum(map(macs, run.convolutions)) > run.profile.macs / 2
    last = max((op.index for op in run.convolutions), default=len(run.graph.ops)) if convolved else sys.maxsize
    linear = {op.inputs[-1].id: (op, _weight(op)) for op in run.graph.ops
              if op.name in ("aten.addmm", "aten.mm") and op.index > last}
    sizes = [(weight.numel, layer_name(op)) for op, weight in linear.values() if weight is not None]
    heavy = sum(number for number, _ in sizes) / run.profile.params if run.profile.params else 0.0
    if heavy > 0.3 and run.convolutions:
        findings.append(Finding(
            "a classifier that dominates", heavy / 2, "parameters",
            f"linear layers hold {percent(heavy)} of the parameters{run.time([name for _, name in sizes])}",
            worst_first(sizes),
            f"`torchslim prune {run.model} --params 0.5 --out slim.safetensors` cuts what they read; or "
            "pool over space before the first of them, and keep only one"))
    return findings


def _weight(op: Op) -> Value | None:
    return next((value for value in op.inputs if value.static and len(value.shape) == 2), None)


def dilated_padding(run: Run) -> Finding | None:
    """A k x k kernel of dilation d keeps the map's size with a padding of d (k - 1) / 2, not of (k - 1) / 2."""
    wrong = []
    for op in run.convolutions:
        kernel, (stride, padding, dilation) = op.args[1].shape[2:], (list(op.args[position]) for position in (3, 4, 5))
        meant = [k // 2 for k in kernel]
        if set(stride) == {1} and max(dilation) > 1 and max(kernel) > 1 and padding == meant and padding != [
                d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]:
            lost = 1 - prod(op.output.shape[2:]) / prod(op.args[0].shape[2:])
            wrong.append((lost, layer_name(op)))
    if not wrong:
        return None
    return Finding(
        '"same" padding that ignores dilation', 0.0, "memory access",
        f"{pluralize(len(wrong), 'dilated convolution')} padded as for a dilation of 1: maps shrink by up to "
        f"{percent(max(lost for lost, _ in wrong))}", worst_first(wrong),
        "pad by dilation * (kernel - 1) // 2, or say padding='same'")
