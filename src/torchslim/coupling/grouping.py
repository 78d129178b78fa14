"""Channels that touch the same dimensions of the same parameters form a group: classes -> channel groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from torchslim.coupling.groups import ChannelGroup, ChannelGroups, Member
from torchslim.coupling.tape import Index
from torchslim.rules.labels import LabeledDim, Labels, LabelSpace


def group_channels(space: LabelSpace, of: Index, labeled_dims: Sequence[LabeledDim],
                   signatures: NDArray[np.uint64]) -> ChannelGroups:
    """The channel groups of a network, frozen ones too, in the order in which parameters first touch them.

    Args:
        space: what the rules declared, by label.
        of: the class of each label.
        touches: those of the space, by class.
        signatures: a number for each class, equal for those that touch the same dimensions equally often.
    """
    return _Grouping(space, of, labeled_dims, signatures).groups()


class _Grouping:
    """The tables that groups are made from."""

    def __init__(self, space: LabelSpace, of: Index, labeled_dims: Sequence[LabeledDim],
                 signatures: NDArray[np.uint64]) -> None:
        self.space, self.of, self.labeled_dims, self.signatures = space, of, labeled_dims, signatures
        self.count = len(signatures)

    def groups(self) -> ChannelGroups:
        """All groups, in the order in which parameters first touch them."""
        reasons = self._reasons()
        shortcut = self._shortcuts()
        reason_of = np.zeros(self.count, dtype=np.int64)
        texts = list(dict.fromkeys(reasons.values()))
        for one, reason in reasons.items():
            reason_of[one] = texts.index(reason) + 1
        touched = self._flags([t.labels for t in self.space.labeled_dims])
        keys = self.signatures ^ (reason_of.astype(np.uint64) * number("reason")) ^ (shortcut * number("shortcut"))
        _, group_of = np.unique(keys[touched], return_inverse=True)
        place = np.full(self.count, -1)
        place[touched] = group_of
        order = self._by_first_touch(place, int(place.max()) + 1 if touched.any() else 0)
        members = self._members(place, order)
        built = []
        for group, classes in order.items():
            own = members[group]
            makers = [m for m in own if m.role == "makes"] or list(own)
            reason = texts[reason_of[classes[0]] - 1] if reason_of[classes[0]] else ""
            built.append(ChannelGroup(makers[0].layer or makers[0].name, len(classes), tuple(own),
                                      bool(shortcut[classes[0]]), reason, classes))
        return ChannelGroups(built)

    def _by_first_touch(self, place: Index, count: int) -> dict[int, Index]:
        """The classes of each group in the order in which parameters first touch them."""
        first = np.full(self.count, -1)
        total = 0
        for touch in reversed(self.labeled_dims):
            total += len(touch.labels)
            # Of equal entries the last one written counts: the first of the touch.
            first[touch.labels[::-1]] = total - np.arange(len(touch.labels))[::-1]
        classes = np.flatnonzero(first >= 0)
        classes = classes[np.argsort(-first[classes])]
        # Group by group, in the order in which the groups are first met.
        group_of = place[classes]
        by_group = np.argsort(group_of, kind="stable")
        starts = np.searchsorted(group_of[by_group], np.arange(count + 1))
        met = sorted(range(count), key=lambda group: by_group[starts[group]])
        return {group: classes[by_group[starts[group]:starts[group + 1]]] for group in met}

    def _members(self, place: Index, order: dict[int, Index]) -> dict[int, list[Member]]:
        rank = np.zeros(self.count, dtype=np.int64)
        for classes in order.values():
            rank[classes] = np.arange(len(classes))
        made: dict[int, int] = {}
        largest = np.zeros(self.count, dtype=np.int64)
        for labels, size in self.space.producers:
            made[int(labels[0])] = max(size, made.get(int(labels[0]), 0))
            classes = self.of[labels]
            largest[classes] = np.maximum(largest[classes], size)
        read = {int(labels[0]) for labels, _ in self.space.readers}
        found: dict[int, list[Member]] = {group: [] for group in order}
        indices: dict[int, list[tuple[int, Index]]] = {}
        for raw, touch in zip(self.space.labeled_dims, self.labeled_dims, strict=True):
            first = int(raw.labels[0])
            role = "makes" if first in made else "reads" if first in read else "follows"
            if made.get(first) == 1 and largest[touch.labels].max() > 1:
                role = "gates"
            scale = touch.name in self.space.norm_scales
            key = id(touch.labels)
            if key not in indices:
                indices[key] = _indices_by_group(place[touch.labels], rank[touch.labels], order)
            for group, own in indices[key]:
                found[group].append(Member(touch.name, touch.dim, own, role, scale, touch.groups))
        return found

    def _reasons(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for entry in self.space.frozen:
            for one in np.unique(self.of[entry.labels]):
                found.setdefault(int(one), entry.reason)
        return found

    def _flags(self, parts: Sequence[Labels]) -> NDArray[np.bool_]:
        flags = np.zeros(self.count, dtype=bool)
        for part in parts:
            flags[self.of[part.ravel()]] = True
        return flags

    def _shortcuts(self) -> NDArray[np.bool_]:
        """Classes that are joined with others, or that several weights read at the same resolution."""
        flags = self._flags(self.space.joined_branches)
        home = {int(t.labels[0]): place for place, t in enumerate(self.space.labeled_dims)}
        largest = np.zeros(self.count, dtype=np.int64)
        for labels, size in self.space.readers:
            classes = self.of[labels]
            largest[classes] = np.maximum(largest[classes], size)
        # A class has several readers if its first and its last differ.
        first, last = np.full(self.count, np.iinfo(np.int64).max), np.full(self.count, np.iinfo(np.int64).min)
        for place, (labels, size) in enumerate(self.space.readers):
            reader = home.get(int(labels[0]), -1 - place)
            classes = self.of[labels]
            # A gate reads the map's mean: one position where another reader sees the whole map.
            if size == 1:
                classes = classes[largest[classes] == 1]
            first[classes] = np.minimum(first[classes], reader)
            last[classes] = np.maximum(last[classes], reader)
        return flags | (first < last)


def _indices_by_group(groups: Index, ranks: Index, order: Mapping[int, Index]) -> list[tuple[int, Index]]:
    """The indices of a dimension, given each one's group and rank there: for each group, shape (channels, n)."""
    found = []
    for group in np.unique(groups).tolist():
        positions = np.flatnonzero(groups == group)
        by_rank = positions[np.argsort(ranks[positions], kind="stable")]
        found.append((group, by_rank.reshape(len(order[group]), -1)))
    return found


def number(name: str, *counts: int) -> np.uint64:
    """64 bits that stand for a name and numbers, the same in every process."""
    bits = _bits(name)
    for count in counts:  # a multiplicative step for each: quick, and as good as any where nobody means harm
        bits = ((bits ^ (count + 1)) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        bits ^= bits >> 29
    return np.uint64(bits)


@cache
def _bits(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
