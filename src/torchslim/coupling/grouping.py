"""Classes of labels -> channel groups: channels that index the same dimensions of the same parameters form a group."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from torchslim.coupling.groups import ChannelGroup, ChannelGroups, Member
from torchslim.coupling.labeled_graph import Index
from torchslim.rules.declarations import LabeledDim
from torchslim.rules.labels import LabelSpace
from torchslim.rules.tracks import Labels


def group_channels(space: LabelSpace, class_of: Index, labeled_dims: Sequence[LabeledDim],
                   signatures: NDArray[np.uint64]) -> ChannelGroups:
    """The channel groups of a network, frozen ones too, in the order in which parameters first index them.

    Args:
        space: what the rules declared, by label.
        class_of: the class of each label.
        labeled_dims: those of the space, by class.
        signatures: a hash for each class, equal for classes that index the same dimensions equally often.
    """
    return _Grouping(space, class_of, labeled_dims, signatures).groups()


class _Grouping:
    """The tables that groups are made from."""

    def __init__(self, space: LabelSpace, class_of: Index, labeled_dims: Sequence[LabeledDim],
                 signatures: NDArray[np.uint64]) -> None:
        self.space, self.class_of, self.labeled_dims, self.signatures = space, class_of, labeled_dims, signatures
        self.num_classes = len(signatures)

    def groups(self) -> ChannelGroups:
        """All groups, in the order in which parameters first index them."""
        reasons, reason_of = self._reasons()
        shortcut = self._shortcuts()
        in_dims = self._mask([labeled.labels for labeled in self.space.declared.labeled_dims])
        keys = (self.signatures ^ (reason_of.astype(np.uint64) * stable_hash("reason"))
                ^ (shortcut * stable_hash("shortcut")))
        _, numbers = np.unique(keys[in_dims], return_inverse=True)
        group_of = np.full(self.num_classes, -1)
        group_of[in_dims] = numbers
        classes_of = self._classes_by_group(group_of, int(group_of.max()) + 1 if in_dims.any() else 0)
        members_of = self._members(group_of, classes_of)
        result = []
        for group, classes in classes_of.items():
            members = members_of[group]
            first = next((m for m in members if m.role == "makes"), members[0])
            result.append(ChannelGroup(first.layer or first.name, len(classes), tuple(members),
                                       bool(shortcut[classes[0]]), reasons[reason_of[classes[0]]], classes))
        return ChannelGroups(result)

    def _classes_by_group(self, group_of: Index, num_groups: int) -> dict[int, Index]:
        """The classes of each group; groups and classes in the order in which parameters first index them."""
        order = np.full(self.num_classes, -1)  # the larger, the earlier
        total = 0
        for labeled in reversed(self.labeled_dims):
            total += len(labeled.labels)
            # Of equal entries the last one written counts: the first index of the dimension.
            order[labeled.labels[::-1]] = total - np.arange(len(labeled.labels))[::-1]
        classes = np.flatnonzero(order >= 0)
        classes = classes[np.argsort(-order[classes])]
        by_group = np.argsort(group_of[classes], kind="stable")
        starts = np.searchsorted(group_of[classes][by_group], np.arange(num_groups + 1))
        first_met = sorted(range(num_groups), key=lambda group: by_group[starts[group]])
        return {group: classes[by_group[starts[group]:starts[group + 1]]] for group in first_met}

    def _members(self, group_of: Index, classes_of: dict[int, Index]) -> dict[int, list[Member]]:
        rank = np.zeros(self.num_classes, dtype=np.int64)
        for classes in classes_of.values():
            rank[classes] = np.arange(len(classes))
        map_size: dict[int, int] = {}  # by the first label of a dimension that makes channels
        for labels, size in self.space.declared.producers:
            map_size[int(labels[0])] = max(size, map_size.get(int(labels[0]), 0))
        largest_map = self._largest_map(self.space.declared.producers)
        readers = {int(labels[0]) for labels, _ in self.space.declared.readers}
        members: dict[int, list[Member]] = {group: [] for group in classes_of}
        indices: dict[int, list[tuple[int, Index]]] = {}
        for declared, labeled in zip(self.space.declared.labeled_dims, self.labeled_dims, strict=True):
            first = int(declared.labels[0])
            role = "makes" if first in map_size else "reads" if first in readers else "follows"
            if map_size.get(first) == 1 and largest_map[labeled.labels].max() > 1:
                role = "gates"
            is_scale = labeled.name in self.space.declared.norm_scales
            key = id(labeled.labels)
            if key not in indices:
                indices[key] = _indices_by_group(group_of[labeled.labels], rank[labeled.labels], classes_of)
            for group, group_indices in indices[key]:
                members[group].append(Member(labeled.name, labeled.dim, group_indices, role, is_scale, labeled.groups))
        return members

    def _reasons(self) -> tuple[list[str], Index]:
        """The reasons for which classes are frozen, and for each class the number of its own; 0, "", for free ones."""
        reasons = {"": 0}
        reason_of = np.zeros(self.num_classes, dtype=np.int64)
        for frozen in reversed(self.space.declared.frozen):  # the first reason counts
            reason_of[self.class_of[frozen.labels]] = reasons.setdefault(frozen.reason, len(reasons))
        return list(reasons), reason_of

    def _mask(self, label_arrays: Sequence[Labels]) -> NDArray[np.bool_]:
        """True for the classes of these labels."""
        mask = np.zeros(self.num_classes, dtype=bool)
        for labels in label_arrays:
            mask[self.class_of[labels.ravel()]] = True
        return mask

    def _largest_map(self, uses: Sequence[tuple[Labels, int]]) -> Index:
        """For each class the most positions of a map on which weights make or read it."""
        largest = np.zeros(self.num_classes, dtype=np.int64)
        for labels, size in uses:
            classes = self.class_of[labels]
            largest[classes] = np.maximum(largest[classes], size)
        return largest

    def _shortcuts(self) -> NDArray[np.bool_]:
        """True for classes that are joined with others, or that several weights read at the same resolution."""
        joined = self._mask(self.space.declared.joined_branches)
        index_of = {int(labeled.labels[0]): index for index, labeled in enumerate(self.space.declared.labeled_dims)}
        largest_map = self._largest_map(self.space.declared.readers)
        # A class has several readers if its first and its last differ.
        first, last = np.full(self.num_classes, np.iinfo(np.int64).max), np.full(self.num_classes, -sys.maxsize)
        for index, (labels, size) in enumerate(self.space.declared.readers):
            reader = index_of.get(int(labels[0]), -1 - index)
            classes = self.class_of[labels]
            # A gate reads the map's mean: one position where another reader reads the whole map.
            if size == 1:
                classes = classes[largest_map[classes] == 1]
            first[classes] = np.minimum(first[classes], reader)
            last[classes] = np.maximum(last[classes], reader)
        return joined | (first < last)


def _indices_by_group(groups: Index, ranks: Index, classes_of: Mapping[int, Index]) -> list[tuple[int, Index]]:
    """For each group the indices of a dimension that its channels hold, shape (channels, n).

    Args:
        groups: the group of each index.
        ranks: the rank of each index's channel within its group.
        classes_of: the classes of each group.
    """
    result = []
    for group in np.unique(groups).tolist():
        positions = np.flatnonzero(groups == group)
        by_rank = positions[np.argsort(ranks[positions], kind="stable")]
        result.append((group, by_rank.reshape(len(classes_of[group]), -1)))
    return result


def stable_hash(name: str, *numbers: int) -> np.uint64:
    """A hash of 64 bits of a name and numbers, the same in every process."""
    bits = _name_hash(name)
    for value in numbers:  # one multiplicative step each: fast, and strong enough where inputs are not adversarial
        bits = ((bits ^ (value + 1)) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        bits ^= bits >> 29
    return np.uint64(bits)


@cache
def _name_hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
