"""`prune --show`: the layers as a tree of modules, their widths, and which of them are cut together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree
    from torch import nn

    from torchslim.coupling.groups import ChannelGroup
    from torchslim.surgery.plans import Plan

WIDEST = 44
"""Columns for the names; widths stand right of them, one below the other."""


@dataclass
class Layer:
    """A layer that makes channels, or filters each by itself.

    Attributes:
        path: names of the modules down to it.
        before, after: its output channels.
        groups: numbers of the channel groups that these are in, from 1.
        stays: why none of them goes; empty if some may.
    """

    path: tuple[str, ...]
    before: int = 0
    after: int = 0
    groups: list[int] = field(default_factory=list)
    stays: str = ""


def with_layers(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups that some layer makes: those of the network's input are left out."""
    return [group for group in groups
            if any(m.role != "reads" and _is_layer(model, m.name, m.role) for m in group.members)]


def layers(model: nn.Module, groups: Sequence[ChannelGroup], plan: Plan | None) -> list[Layer]:
    """The layers of a model in its own order, with their widths before and, by the plan, after the cut."""
    found: dict[tuple[str, int], Layer] = {}
    reasons: dict[tuple[str, int], set[str]] = {}
    left = {(entry.name, entry.channels): entry.reason for entry in plan.left_alone} if plan else {}
    for number, group in enumerate(groups, 1):
        for member in group.members:
            if member.role == "reads" or not _is_layer(model, member.name, member.role):
                continue
            key = (member.name, member.dim)
            layer = found.setdefault(key, Layer(tuple(member.name.removesuffix(".weight").split("."))))
            layer.before += member.indices.size
            layer.groups.append(number)
            reasons.setdefault(key, set()).add(group.frozen or left.get((group.name, group.channels), ""))
    for (name, dim), layer in found.items():
        kept = plan.kept.get(name, {}).get(dim) if plan else None
        layer.after = layer.before if kept is None else len(kept)
        if layer.after == layer.before:
            layer.stays = "; ".join(sorted(reasons[name, dim] - {""})) if "" not in reasons[name, dim] else ""
    order = {name: place for place, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    return [found[key] for key in sorted(found, key=lambda key: order[key[0]])]


def _is_layer(model: nn.Module, name: str, role: str) -> bool:
    """Filters and matrices; what follows them (biases, norms) is as wide as they are, and left out."""
    from torch.nn.modules.conv import _ConvNd

    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    if attribute not in dict(module.named_parameters(recurse=False)):
        return False
    return role in ("makes", "gates") or (isinstance(module, _ConvNd) and attribute == "weight")


def as_data(shown: Sequence[Layer], groups: Sequence[ChannelGroup]) -> dict[str, Any]:
    """Layers and groups for `--json`."""
    own = [{"name": ".".join(layer.path), "before": layer.before, "after": layer.after, "groups": layer.groups,
            "stays": layer.stays} for layer in shown]
    return {"layers": own, "groups": [
        {"group": number, "name": group.name, "channels": group.channels, "shortcut": group.shortcut,
         "frozen": group.frozen, "layers": [".".join(layer.path) for layer in shown if number in layer.groups]}
        for number, group in enumerate(groups, 1)]}


def draw(title: str, shown: Sequence[Layer], planned: bool) -> None:
    """The tree on stdout, in colour on a terminal, as wide as it is."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(title, style="bold"))
    column = min(WIDEST, max((4 * len(layer.path) + len(layer.path[-1]) for layer in shown), default=0))
    digits = len(str(max((layer.before for layer in shown), default=0)))
    nodes: dict[tuple[str, ...], Tree] = {(): tree}
    by_path = {layer.path: layer for layer in shown}
    for path in _paths(shown):
        label = Text(path[-1])
        if path in by_path:
            label.append(" " * max(1, column + 2 - 4 * len(path) - len(path[-1])))
            label.append_text(_width(by_path[path], planned, digits))
        nodes[path] = nodes[path[:-1]].add(label)
    Console(markup=False, highlight=False).print(tree)


def _paths(shown: Sequence[Layer]) -> Iterator[tuple[str, ...]]:
    """Every module on the way to a layer, before what is inside it."""
    seen: set[tuple[str, ...]] = set()
    for layer in shown:
        for depth in range(1, len(layer.path) + 1):
            path = layer.path[:depth]
            if path not in seen:
                seen.add(path)
                yield path


def _width(layer: Layer, planned: bool, digits: int) -> Text:
    from rich.text import Text

    text = Text(f"{layer.before:>{digits}}")
    if planned and layer.after < layer.before:
        text.append(f" → {layer.after:<{digits}}", style="green")
    elif planned:
        text.append(" " * (digits + 3))
    if layer.stays:
        return text.append(f"  stays: {layer.stays}", style="dim")
    return text.append(f"  group{'s' * (len(layer.groups) > 1)} {_ranges(layer.groups)}", style="cyan")


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as a range: `2, 5-8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
