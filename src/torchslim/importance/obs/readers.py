"""The layers that read a group's channels, and at which of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchslim.coupling.groups import ChannelGroup
from torchslim.importance.evidence import Evidence
from torchslim.utils.layer_spec import LayerSpec, filters_first, spec_from_attributes

WIDE = 2048
"""Filters with more weights get one inverse per tap: inverting all moments would take minutes."""

Index = NDArray[np.int64]


class WeightReader(NamedTuple):
    """A layer that reads a group's channels.

    Attributes:
        layer: its name.
        spec: its spec.
        weight: (G, N / G, fan-in x taps).
        seen: (channels, n): the layer's n input channels, over all groups, for each channel.
    """

    layer: str
    spec: LayerSpec
    weight: Tensor
    seen: Index

    @property
    def columns(self) -> list[Tensor]:
        """Index sets of a filter's inputs whose moments are inverted together: one of all, or one per tap."""
        taps, inputs = prod(self.spec.kernel), self.spec.fan_in
        if inputs * taps <= WIDE:
            return [torch.arange(inputs * taps)]
        columns = [torch.arange(inputs)]
        if inputs > WIDE and self.spec.groups == 1:  # a flattened map: by position
            columns = [torch.from_numpy(indices) for indices in self.seen.T]
        return [channels * taps + tap for channels in columns for tap in range(taps)]


def weight_readers(group: ChannelGroup, evidence: Evidence, readers: Mapping[int, list[str]]) -> Iterator[WeightReader]:
    """Of one group.

    Args:
        group: of channels.
        evidence: the network.
        readers: names of layers by the id of each of their tensors.
    """
    for member in group.members:
        for name in readers.get(id(evidence.state[member.name]), ()) if member.role == "reads" else ():
            layer: Any = evidence.model.get_submodule(name)
            spec = spec_from_attributes(layer)
            if spec is not None and member.indices.max() < spec.inputs:
                weight = filters_first(layer.weight.detach().double().cpu(), spec.groups, spec.transposed)
                filters = weight.reshape(spec.groups, spec.outputs // spec.groups, -1)
                yield WeightReader(name, spec, filters, member.indices)
