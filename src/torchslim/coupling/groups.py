"""Groups of channels that must be kept or removed together, and how they print."""

from __future__ import annotations

from dataclasses import dataclass

from torchslim.coupling.labeled_graph import Index

ROLES = ("makes", "gates", "follows", "reads")


@dataclass(frozen=True, eq=False)
class Member:
    """A dimension of a parameter, buffer or plain tensor attribute that a group's channels index.

    Attributes:
        name: the tensor's qualified name.
        dim: its dimension. Dimension 1 of a grouped convolution counts the input channels over all groups.
        indices: shape (channels, n): the n indices of each channel of the group.
        role: "makes" (a filter whose output the channel is), "reads" (weights that read the channel), "gates" (a
            filter whose one number scales the channel's whole map, as in squeeze-and-excitation) or "follows" (bias,
            norm, depthwise filter, ...).
        scale: True for the scale of a norm layer.
        groups: above 1 for dimension 1 of a grouped convolution.
    """

    name: str
    dim: int
    indices: Index
    role: str
    scale: bool
    groups: int

    @property
    def layer(self) -> str:
        """Qualified name of the module that owns the tensor."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, eq=False, repr=False)
class ChannelGroup:
    """Channels that index the same dimensions of the same parameters; removing one removes all that it indexes.

    Attributes:
        name: the first layer that makes the channels.
        channels: how many there are.
        members: the dimensions that they index.
        shortcut: True if a tensor of the group enters an addition or concatenation, or has several readers (the gates
            of squeeze-and-excitation aside).
        frozen: why the channels can't be cut; empty if they can.
        classes: the numbers of these channels among all of the network's.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    shortcut: bool
    frozen: str
    classes: Index

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers whose output channels these are."""
        return tuple(dict.fromkeys(m.layer for m in self.members if m.role == "makes"))

    @property
    def state(self) -> str:
        """One of "free", "on a shortcut" and "frozen: " with the reason."""
        return f"frozen: {self.frozen}" if self.frozen else "on a shortcut" if self.shortcut else "free"

    def touched(self) -> dict[str, list[str]]:
        """By role, the tensors of each layer with the dimension: `bn1.weight, .bias [dim 0]`."""
        tensors: dict[tuple[str, str, int], list[str]] = {}
        for member in self.members:
            tensors.setdefault((member.role, member.layer, member.dim), []).append(member.name)
        by_role: dict[str, list[str]] = {role: [] for role in ROLES}
        for (role, layer, dim), (first, *others) in tensors.items():
            rest = "".join(f", .{name[len(layer) + bool(layer):]}" for name in others)
            by_role[role].append(f"{first}{rest} [dim {dim}]")
        return {role: entries for role, entries in by_role.items() if entries}

    def _head(self) -> str:
        return f"{self.name or '(model)'}: {self.channels} channels, {self.state}"

    def __str__(self) -> str:
        return "\n".join([self._head(), *(f"    {role:<8}{entry}" for role, entries in self.touched().items()
                                          for entry in entries)])

    def __repr__(self) -> str:
        return f"<ChannelGroup {self._head()}>"

    def brief(self, width: int = 116) -> str:
        """As `str`, a line for each role: as many tensors as fit in the width, and how many more there are."""
        lines = [self._head()]
        for role, entries in self.touched().items():
            line = f"    {role:<8}{entries[0]}"
            for index, entry in enumerate(entries[1:], 1):
                if len(line) + len(entry) + 2 > width - len(", and 999 more") * (index < len(entries) - 1):
                    line += f", and {len(entries) - index} more"
                    break
                line += f", {entry}"
            lines.append(line)
        return "\n".join(lines)


class ChannelGroups(tuple[ChannelGroup, ...]):
    """A network's channel groups, in the order of its run; prints as a list."""

    __slots__ = ()

    def __str__(self) -> str:
        free = [group.channels for group in self if not group.frozen]
        head = (f"{len(self)} channel groups, {sum(group.channels for group in self):,} channels; can be cut: "
                f"{sum(free):,} channels in {len(free)} of them")
        return "\n".join([head, *(group.brief() for group in self)])

    def __repr__(self) -> str:
        return str(self)
