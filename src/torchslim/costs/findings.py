"""What makes a network more expensive than necessary: one function for each kind of finding, Run -> Finding.

The guidelines G1 to G4 are those of ShuffleNet V2 (Ma et al. 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from shlex import quote

from torchslim.costs.memory import accessed, is_view
from torchslim.costs.profiler import Profile
from torchslim.formulas import pointwise_access, pointwise_access_bound
from torchslim.rules import is_arithmetic, macs, multiplies
from torchslim.tracing.graph import Graph, Op, Value
from torchslim.utils.formatting import percent, pluralize

MAX_CODE_LINES = 3
"""Lines of code that a remedy shows at most."""


@dataclass(frozen=True)
class Finding:
    """One thing that could be cheaper.

    Attributes:
        kind: its name.
        gain: estimated share of `of` that could be saved, in [0, 1].
        of: what is saved: "parameters", "MACs", "memory access" or "time".
        evidence: what was counted or measured.
        layers: the modules concerned, the worst first.
        remedy: what to do, with the command or the line of code for it.
    """

    kind: str
    gain: float
    of: str
    evidence: str
    layers: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Run:
    """A run of a network and its costs.

    Attributes:
        graph: the traced run.
        profile: its costs.
        model: the name of the network in the commands of remedies.
        ms: measured milliseconds of each module without its submodules, by name; empty if not measured.
    """

    graph: Graph
    profile: Profile
    model: str
    ms: Mapping[str, float]

    @cached_property
    def convolutions(self) -> list[Op]:
        """The convolutions whose weight is a parameter, without transposed ones."""
        return [op for op in self.graph.ops if op.name in ("aten.convolution", "aten._convolution")
                and not op.argument(6, "transposed", False) and op.args[1].static]

    @cached_property
    def readers(self) -> dict[int, list[Op]]:
        """The operations that read each value, by its id."""
        readers: dict[int, list[Op]] = {}
        for op in self.graph.ops:
            for value in op.inputs:
                readers.setdefault(value.id, []).append(op)
        return readers

    def time(self, modules: Sequence[str]) -> str:
        """The share of the measured time that these modules take, for the evidence; empty if not measured."""
        total = sum(self.ms.values())
        return f"; {percent(sum(self.ms.get(name, 0.0) for name in set(modules)) / total)} of the time" if total else ""


def num_groups(op: Op) -> int:
    """Groups of a convolution."""
    return int(op.argument(8, "groups", 1))


def elements_accessed(op: Op) -> int:
    """Elements that an operation reads and writes."""
    return sum(value.numel for value in accessed(op))


def layer_name(op: Op) -> str:
    """The layer that an operation belongs to."""
    return op.module or "(model)"


def only_option(layers: Sequence[str]) -> str:
    """The command-line option that restricts a command to the first of these layers; empty if they have no name."""
    names = [layer for layer in layers if layer not in ("", "(model)")]
    return f" --only {quote(names[0])}" if names else ""


def worst_first(costs: Sequence[tuple[float, str]]) -> tuple[str, ...]:
    """The layers by falling loss, each once."""
    return tuple(dict.fromkeys(name for _, name in sorted(costs, key=lambda item: -item[0])))


def dead_parameters(run: Run) -> Finding | None:
    """Parameters that no operation reads."""
    dead = [(layer.dead_params, layer.name or "(model)") for layer in run.profile.layers if layer.dead_params]
    if not dead:
        return None
    total = sum(number for number, _ in dead)
    return Finding(
        "dead parameters", total / run.profile.params, "parameters",
        f"{total:,} of {run.profile.params:,} parameters are never read by the forward pass in eval mode",
        worst_first(dead), f"unless training uses it, take it out: {_removing_code(run)}")


def _removing_code(run: Run) -> str:
    """The lines of code that remove what is never read: whole modules where all their parameters are dead."""
    dead_modules = [m.name for m in run.profile.modules if m.params and m.dead_params == m.params and m.name]
    outermost = [name for name in dead_modules if not any(name.startswith(f"{other}.") for other in dead_modules)]
    lines = [f"model.set_submodule({name!r}, torch.nn.Identity())" for name in outermost]
    read = run.graph.tensors_read()
    for name, value in run.graph.state.items():
        owner, _, parameter = name.rpartition(".")
        inside = any(name.startswith(f"{other}.") for other in outermost)
        if value.source == "parameter" and name not in read and not inside:
            lines.append(f"model.get_submodule({owner!r}).register_parameter({parameter!r}, None)")
    more = f"; and {len(lines) - MAX_CODE_LINES} more such lines" if len(lines) > MAX_CODE_LINES else ""
    return f"`{'`; `'.join(lines[:MAX_CODE_LINES])}`{more}"


def unbalanced(run: Run) -> Finding | None:
    """G1: a 1x1 convolution of B MACs on h w positions accesses 2 sqrt(h w B) + B / (h w) elements at least."""
    lost, ratios, wide = [], [], {}
    for op in run.convolutions:
        weight, positions = op.args[1], prod(op.output.shape[2:]) * op.output.shape[0]
        if prod(weight.shape[2:]) != 1 or num_groups(op) != 1 or not positions:
            continue
        outputs, inputs = weight.shape[:2]
        access = pointwise_access(inputs, outputs, (positions,))
        least = pointwise_access_bound(positions * inputs * outputs, (positions,))
        if access > 1.2 * least:
            lost.append((access - least, layer_name(op)))
            wide[layer_name(op)] = layer_name(op) if outputs > inputs else _maker(run, op)
            ratios.append(access / least)
    if not lost:
        return None
    return Finding(
        "unbalanced 1x1 convolutions (G1)", sum(n for n, _ in lost) / run.profile.memory_access, "memory access",
        f"{pluralize(len(lost), 'convolution')} with up to {max(ratios):.2f} times the access of equal widths"
        f"{run.time([name for _, name in lost])}",
        worst_first(lost), "choose more equal widths, or cut the wide side: `torchslim prune "
        f"{run.model} --macs 0.9{only_option([wide[name] for name in worst_first(lost)])} --out slim.safetensors`")


def _maker(run: Run, reader: Op) -> str:
    """The convolution or linear layer that made the channels that an operation reads."""
    wanted = reader.inputs[0].id
    for op in reversed(run.graph.ops[:reader.index]):
        if any(out is not None and out.id == wanted for out in op.outputs):
            if multiplies(op):
                return op.module
            wanted = next((value.id for value in op.inputs if not value.static), wanted)
    return ""


def grouped(run: Run) -> Finding | None:
    """G2: at equal multiply-adds, a convolution of g groups has g times as many outputs to write."""
    lost = [(op.output.numel * (1 - 1 / num_groups(op)), layer_name(op)) for op in run.convolutions
            if num_groups(op) >= 4 and op.args[1].shape[1] > 1]
    if not lost:
        return None
    most = max(num_groups(op) for op in run.convolutions if op.args[1].shape[1] > 1)
    return Finding(
        "heavy grouping (G2)", sum(n for n, _ in lost) / run.profile.memory_access, "memory access",
        f"{pluralize(len(lost), 'convolution')} of up to {most} groups write more than ungrouped ones of as many MACs"
        f"{run.time([name for _, name in lost])}",
        worst_first(lost), f"lose whole groups: `torchslim prune {run.model} --macs 0.7 --whole-groups --out "
        "slim.safetensors`, or choose fewer groups")


def fragmented(run: Run) -> Finding | None:
    """G3: several small operations side by side use parallel hardware worse than one large one."""
    branches = [[op for op in ops if multiplies(op)] for ops in run.readers.values()]
    wide = [ops for ops in branches if len(ops) >= 3 and not any(value.static for value in _common(ops))]
    if not wide:
        return None
    layers = [(float(macs(op)), layer_name(op)) for ops in wide for op in ops]
    share = sum(n for n, _ in layers) / max(run.profile.macs, 1)
    names = {name for _, name in layers}
    total = sum(run.ms.values())
    excess = sum(run.ms.get(name, 0.0) for name in names) / total - share if total else 0.0
    return Finding(
        "fragmentation (G3)", max(excess, 0.0), "time",
        f"{pluralize(len(wide), 'tensor')} with up to {max(map(len, wide))} convolutions side by side, which hold "
        f"{percent(share)} of the MACs{run.time(sorted(names))}",
        worst_first(layers), "join branches of one kernel size into one convolution; see whether a compiler does: "
        f"`torchslim bench {run.model} --backend eager,compiled,onnxruntime`")


def _common(ops: Sequence[Op]) -> list[Value]:
    shared = set.intersection(*({value.id for value in op.inputs} for op in ops))
    return [value for value in ops[0].inputs if value.id in shared]


def elementwise(run: Run) -> Finding | None:
    """G4: activations, additions and products cost few FLOPs and much memory access."""
    ops = [op for op in run.graph.ops if is_arithmetic(op) and elements_accessed(op)]
    access = sum(map(elements_accessed, ops))
    share = access / max(run.profile.memory_access, 1)
    usual = sum(2 * op.output.numel for op in run.graph.ops if multiplies(op))  # one activation behind each layer
    if share < 0.3 or access - usual < 0.1 * run.profile.memory_access:
        return None
    # Computed with the operation before it, a result is neither written nor read again.
    made = {out.id: op for op in run.graph.ops if not is_view(op) for out in op.outputs if out is not None}
    fused = [op for op in ops if any(value.id in made and len(run.readers[value.id]) == 1 for value in op.inputs)]
    gain = sum(2 * max(value.numel for value in op.inputs) for op in fused) / run.profile.memory_access
    return Finding(
        "element-wise operations (G4)", min(gain, share), "memory access",
        f"{pluralize(len(ops), 'operation')} with {percent(share)} of the memory access and "
        f"{percent(sum(op.output.numel for op in ops) / max(run.profile.flops, 1))} of the FLOPs"
        f"{run.time([op.module for op in ops if not _multiplies(run, op.module)])}",
        worst_first([(elements_accessed(op), layer_name(op)) for op in ops]),
        "let a runtime compute them with the convolution before them: "
        f"`torchslim export {run.model} model.onnx`, or `torch.compile(model)`")


def _multiplies(run: Run, module: str) -> bool:
    """True for a module that also multiplies, whose time is not that of its element-wise operations."""
    return any(layer.name == module and layer.macs for layer in run.profile.layers)


FindingCheck = Callable[[Run], Finding | None]
