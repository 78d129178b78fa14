"""`prune --show`: the layers as a tree of modules, with their widths and channel groups."""

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

NAME_COLUMNS = 44
"""Columns of the terminal for names at most; the widths are aligned to the right of them."""


@dataclass
class TreeLayer:
    """A layer that makes channels, or a depthwise one.

    Attributes:
        path: names of the modules that contain it, and its own.
        before, after: its output channels.
        groups: numbers of the channel groups of these channels, from 1.
        stays: why none of them is removed; empty if some may be.
    """

    path: tuple[str, ...]
    before: int = 0
    after: int = 0
    groups: list[int] = field(default_factory=list)
    stays: str = ""


def groups_with_layers(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups whose channels some layer makes; those of the network's input are left out."""
    return [group for group in groups
            if any(m.role != "reads" and _is_layer(model, m.name, m.role) for m in group.members)]


def tree_layers(model: nn.Module, groups: Sequence[ChannelGroup], plan: Plan | None) -> list[TreeLayer]:
    """The layers of a model in its own order, with their widths before and, by the plan, after the cut."""
    by_tensor: dict[tuple[str, int], TreeLayer] = {}
    reasons: dict[tuple[str, int], set[str]] = {}
    left_alone = {(entry.name, entry.channels): entry.reason for entry in plan.left_alone} if plan else {}
    for number, group in enumerate(groups, 1):
        for member in group.members:
            if member.role == "reads" or not _is_layer(model, member.name, member.role):
                continue
            key = (member.name, member.dim)
            layer = by_tensor.setdefault(key, TreeLayer(tuple(member.name.removesuffix(".weight").split("."))))
            layer.before += member.indices.size
            layer.groups.append(number)
            reasons.setdefault(key, set()).add(group.frozen or left_alone.get((group.name, group.channels), ""))
    for (name, dim), layer in by_tensor.items():
        kept = plan.kept.get(name, {}).get(dim) if plan else None
        layer.after = layer.before if kept is None else len(kept)
        if layer.after == layer.before:
            layer.stays = "; ".join(sorted(reasons[name, dim] - {""})) if "" not in reasons[name, dim] else ""
    order = {name: index for index, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    return [by_tensor[key] for key in sorted(by_tensor, key=lambda key: order[key[0]])]


def _is_layer(model: nn.Module, name: str, role: str) -> bool:
    """True for filters and matrices; biases and norms have the width of the layer before them, and are left out."""
    from torch.nn.modules.conv import _ConvNd

    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    if attribute not in dict(module.named_parameters(recurse=False)):
        return False
    return role in ("makes", "gates") or (isinstance(module, _ConvNd) and attribute == "weight")


def as_data(shown: Sequence[TreeLayer], groups: Sequence[ChannelGroup]) -> dict[str, Any]:
    """Layers and groups for `--json`."""
    layers = [{"name": ".".join(layer.path), "before": layer.before, "after": layer.after, "groups": layer.groups,
               "stays": layer.stays} for layer in shown]
    return {"layers": layers, "groups": [
        {"group": number, "name": group.name, "channels": group.channels, "shortcut": group.shortcut,
         "frozen": group.frozen, "layers": [".".join(layer.path) for layer in shown if number in layer.groups]}
        for number, group in enumerate(groups, 1)]}


def draw(title: str, shown: Sequence[TreeLayer], planned: bool) -> None:
    """Print the tree, in colour and as wide as the terminal if there is one."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(title, style="bold"))
    column = min(NAME_COLUMNS, max((4 * len(layer.path) + len(layer.path[-1]) for layer in shown), default=0))
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


def _paths(shown: Sequence[TreeLayer]) -> Iterator[tuple[str, ...]]:
    """Every module that contains a layer and the layers, parents before children."""
    seen: set[tuple[str, ...]] = set()
    for layer in shown:
        for depth in range(1, len(layer.path) + 1):
            path = layer.path[:depth]
            if path not in seen:
                seen.add(path)
                yield path


def _width(layer: TreeLayer, planned: bool, digits: int) -> Text:
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
    """Sorted numbers, with consecutive ones as a range: `2, 5-8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
