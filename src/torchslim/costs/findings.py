"""What makes a network heavier than it need be: one function for each thing to find, Seen -> Finding.

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

NAMED = 3
"""So many lines of code are in a remedy."""


@dataclass(frozen=True)
class Finding:
    """One thing that could be lighter.

    Attributes:
        kind: its name, in a few words.
        gain: about what share of `of` could be saved, in [0, 1]: an estimate.
        of: what is saved: "parameters", "MACs", "memory access" or "time".
        evidence: what was counted or measured.
        layers: the modules concerned, the worst first.
        remedy: what to do, with the command or the line of code that does it.
    """

    kind: str
    gain: float
    of: str
    evidence: str
    layers: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Seen:
    """A run of a network, and what it cost.

    Attributes:
        graph: the tape.
        profile: the costs.
        model: how the commands call the network.
        ms: measured milliseconds of each module by itself, by name; empty where nothing was measured.
    """

    graph: Graph
    profile: Profile
    model: str
    ms: Mapping[str, float]

    @cached_property
    def convolutions(self) -> list[Op]:
        """The convolutions with weights of their own, transposed ones aside."""
        return [op for op in self.graph.ops if op.name in ("aten.convolution", "aten._convolution")
                and not op.argument(6, "transposed", False) and op.args[1].static]

    @cached_property
    def readers(self) -> dict[int, list[Op]]:
        """The operations that read each value, by its id."""
        found: dict[int, list[Op]] = {}
        for op in self.graph.ops:
            for value in op.inputs:
                found.setdefault(value.id, []).append(op)
        return found

    def time(self, modules: Sequence[str]) -> str:
        """What share of the measured time these modules take, for the evidence; nothing where none was measured."""
        total = sum(self.ms.values())
        return f"; {percent(sum(self.ms.get(name, 0.0) for name in set(modules)) / total)} of the time" if total else ""


def groups_of(op: Op) -> int:
    """Of a convolution."""
    return int(op.argument(8, "groups", 1))


def touched(op: Op) -> int:
    """Elements that an operation reads and writes."""
    return sum(value.numel for value in accessed(op))


def named(op: Op) -> str:
    """The layer that an operation belongs to."""
    return op.module or "(model)"


def only(layers: Sequence[str]) -> str:
    """The option that says which layers a command is for; nothing where they have no name."""
    names = [layer for layer in layers if layer not in ("", "(model)")]
    return f" --only {quote(names[0])}" if names else ""


def worst(costs: Sequence[tuple[float, str]]) -> tuple[str, ...]:
    """Layers from the greatest loss down, each once."""
    return tuple(dict.fromkeys(name for _, name in sorted(costs, key=lambda one: -one[0])))


def dead_parameters(seen: Seen) -> Finding | None:
    """Parameters that no operation reads."""
    dead = [(layer.dead_params, layer.name or "(model)") for layer in seen.profile.layers if layer.dead_params]
    if not dead:
        return None
    total = sum(number for number, _ in dead)
    return Finding(
        "dead parameters", total / seen.profile.params, "parameters",
        f"{total:,} of {seen.profile.params:,} parameters are never read by the forward pass in eval mode",
        worst(dead), f"unless training uses it, take it out: {_taken_out(seen)}")


def _taken_out(seen: Seen) -> str:
    """The lines of code that take out what is never read: whole modules where all in them is dead."""
    whole = [m.name for m in seen.profile.modules if m.params and m.dead_params == m.params and m.name]
    outermost = [name for name in whole if not any(name.startswith(f"{other}.") for other in whole)]
    lines = [f"model.set_submodule({name!r}, torch.nn.Identity())" for name in outermost]
    read = seen.graph.tensors_read()
    for name, value in seen.graph.state.items():
        owner, _, own = name.rpartition(".")
        inside = any(name.startswith(f"{other}.") for other in outermost)
        if value.source == "parameter" and name not in read and not inside:
            lines.append(f"model.get_submodule({owner!r}).register_parameter({own!r}, None)")
    more = f"; and {len(lines) - NAMED} more such lines" if len(lines) > NAMED else ""
    return f"`{'`; `'.join(lines[:NAMED])}`{more}"


def unbalanced(seen: Seen) -> Finding | None:
    """G1: a 1x1 convolution of B MACs on h w positions accesses 2 sqrt(h w B) + B / (h w) elements at least."""
    lost, ratios, wide = [], [], {}
    for op in seen.convolutions:
        weight, positions = op.args[1], prod(op.output.shape[2:]) * op.output.shape[0]
        if prod(weight.shape[2:]) != 1 or groups_of(op) != 1 or not positions:
            continue
        outputs, inputs = weight.shape[:2]
        access = pointwise_access(inputs, outputs, (positions,))
        least = pointwise_access_bound(positions * inputs * outputs, (positions,))
        if access > 1.2 * least:
            lost.append((access - least, named(op)))
            wide[named(op)] = named(op) if outputs > inputs else _maker(seen, op)
            ratios.append(access / least)
    if not lost:
        return None
    return Finding(
        "unbalanced 1x1 convolutions (G1)", sum(n for n, _ in lost) / seen.profile.memory_access, "memory access",
        f"{pluralize(len(lost), 'convolution')} with up to {max(ratios):.2f} times the access of equal widths"
        f"{seen.time([name for _, name in lost])}",
        worst(lost), "choose more equal widths, or cut the wide side: `torchslim prune "
        f"{seen.model} --macs 0.9{only([wide[name] for name in worst(lost)])} --out slim.safetensors`")


def _maker(seen: Seen, reader: Op) -> str:
    """The layer that made the channels that an operation reads, through what does not multiply."""
    sought = reader.inputs[0].id
    for op in reversed(seen.graph.ops[:reader.index]):
        if any(out is not None and out.id == sought for out in op.outputs):
            if multiplies(op):
                return op.module
            sought = next((value.id for value in op.inputs if not value.static), sought)
    return ""


def grouped(seen: Seen) -> Finding | None:
    """G2: at equal multiply-adds, a convolution of g groups has g times as many outputs to write."""
    lost = [(op.output.numel * (1 - 1 / groups_of(op)), named(op)) for op in seen.convolutions
            if groups_of(op) >= 4 and op.args[1].shape[1] > 1]
    if not lost:
        return None
    most = max(groups_of(op) for op in seen.convolutions if op.args[1].shape[1] > 1)
    return Finding(
        "heavy grouping (G2)", sum(n for n, _ in lost) / seen.profile.memory_access, "memory access",
        f"{pluralize(len(lost), 'convolution')} of up to {most} groups write more than ungrouped ones of as many MACs"
        f"{seen.time([name for _, name in lost])}",
        worst(lost), f"lose whole groups: `torchslim prune {seen.model} --macs 0.7 --whole-groups --out "
        "slim.safetensors`, or choose fewer groups")


def fragmented(seen: Seen) -> Finding | None:
    """G3: several small operations side by side use parallel hardware worse than one large one."""
    branches = [[op for op in ops if multiplies(op)] for ops in seen.readers.values()]
    wide = [ops for ops in branches if len(ops) >= 3 and not any(value.static for value in _common(ops))]
    if not wide:
        return None
    layers = [(float(macs(op)), named(op)) for ops in wide for op in ops]
    share = sum(n for n, _ in layers) / max(seen.profile.macs, 1)
    own = {name for _, name in layers}
    total = sum(seen.ms.values())
    excess = sum(seen.ms.get(name, 0.0) for name in own) / total - share if total else 0.0
    return Finding(
        "fragmentation (G3)", max(excess, 0.0), "time",
        f"{pluralize(len(wide), 'tensor')} with up to {max(map(len, wide))} convolutions side by side, which hold "
        f"{percent(share)} of the MACs{seen.time(sorted(own))}",
        worst(layers), "join branches of one kernel size into one convolution; see whether a compiler does: "
        f"`torchslim bench {seen.model} --backend eager,compiled,onnxruntime`")


def _common(ops: Sequence[Op]) -> list[Value]:
    shared = set.intersection(*({value.id for value in op.inputs} for op in ops))
    return [value for value in ops[0].inputs if value.id in shared]


def elementwise(seen: Seen) -> Finding | None:
    """G4: activations, additions and products cost few FLOPs and much memory access."""
    ops = [op for op in seen.graph.ops if is_arithmetic(op) and touched(op)]
    access = sum(map(touched, ops))
    share = access / max(seen.profile.memory_access, 1)
    usual = sum(2 * op.output.numel for op in seen.graph.ops if multiplies(op))  # one activation behind each layer
    if share < 0.3 or access - usual < 0.1 * seen.profile.memory_access:
        return None
    # Computed with the operation before it, a result is neither written nor read again.
    made = {out.id: op for op in seen.graph.ops if not is_view(op) for out in op.outputs if out is not None}
    fused = [op for op in ops if any(value.id in made and len(seen.readers[value.id]) == 1 for value in op.inputs)]
    gain = sum(2 * max(value.numel for value in op.inputs) for op in fused) / seen.profile.memory_access
    return Finding(
        "element-wise operations (G4)", min(gain, share), "memory access",
        f"{pluralize(len(ops), 'operation')} with {percent(share)} of the memory access and "
        f"{percent(sum(op.output.numel for op in ops) / max(seen.profile.flops, 1))} of the FLOPs"
        f"{seen.time([op.module for op in ops if not _multiplies(seen, op.module)])}",
        worst([(touched(op), named(op)) for op in ops]),
        "let a runtime compute them with the convolution before them: "
        f"`torchslim export {seen.model} model.onnx`, or `torch.compile(model)`")


def _multiplies(seen: Seen, module: str) -> bool:
    """True for a module that also multiplies, whose time is not that of its element-wise operations."""
    return any(layer.name == module and layer.macs for layer in seen.profile.layers)


Check = Callable[[Seen], Finding | None]
