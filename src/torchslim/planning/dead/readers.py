"""Convolutions and matrix products: which of the channels that they read go into which of those that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchslim.coupling.labeled_graph import Index
from torchslim.planning.dead.channels import FollowedValues, Mask, Numbers
from torchslim.rules import row_name
from torchslim.tracing.graph import Op, Value

UNLABELED = -1
"""The class of what has none."""

_CONVOLUTIONS = frozenset({"aten.convolution", "aten._convolution"})
_PRODUCTS = frozenset({"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"})


@dataclass(frozen=True, eq=False)
class Reader:
    """An operation whose weights, which depend on no input of the network, read channels and make others.

    Attributes:
        op: the operation.
        source: the number of the value that it reads.
        reads, makes: the class of each channel that it reads, and of each that it makes.
        constants: of each channel that it reads the constant that it holds; NaN where it varies.
        pads: it sees zeros around the map, or other positions less often.
        weights: the weight in groups: shape (groups, channels made, channels read, taps).
        bias: what it adds.
    """

    op: Op
    source: int
    reads: Index
    makes: Index
    constants: Numbers
    pads: bool
    weights: Tensor
    bias: Value | None

    @cached_property
    def edges(self) -> NDArray[np.bool_]:
        """Which channels go into which: shape (groups, channels made, channels read)."""
        return np.asarray((self.weights != 0).any(3).cpu().numpy())

    @cached_property
    def is_depthwise(self) -> bool:
        """What it makes of a channel is the same channel."""
        groups = len(self.weights)
        return len(self.reads) == groups and bool(
            (self.reads[:, None] == self.makes.reshape(groups, -1)).all()) and bool((self.reads != UNLABELED).all())

    @property
    def spoilt(self) -> Mask:
        """Of each channel that it reads whether what it gives to those made varies."""
        return np.asarray(np.isnan(self.constants) | ((self.constants != 0) & self.pads))

    def mark_varying(self, varies: Mask) -> None:
        """Set for each class that it makes whether it varies."""
        made = self.reached_from(self.spoilt)
        known = self.makes != UNLABELED
        varies[self.makes[known]] = False
        np.logical_or.at(varies, self.makes[known], made[known])

    def reached_from(self, read: Mask) -> Mask:
        """Of each channel made whether one of these goes into it."""
        return np.asarray((self.edges & read.reshape(len(self.weights), 1, -1)).any(2).ravel())

    def leading_to(self, made: Mask) -> Mask:
        """Of each channel read whether it goes into one of these."""
        return np.asarray((self.edges & made.reshape(len(self.weights), -1, 1)).any(1).ravel())

    def contribution(self, read: Mask) -> Numbers:
        """What these channels, which are constant, add to each channel made."""
        values = torch.from_numpy(np.where(read, self.constants, 0.0)).to(self.weights.device)
        sums = self.weights.double().sum(3) * values.reshape(len(self.weights), 1, -1)
        return np.asarray(sums.sum(2).reshape(-1).cpu().numpy())


def reader_of(run: FollowedValues, op: Op, tensors: Sequence[Tensor]) -> Reader | None:
    """What an operation is where weights read channels; None for any other, and where the weights vary themselves."""
    name = row_name(op)
    if op.kwargs or name not in _CONVOLUTIONS | _PRODUCTS:
        return None
    tensor_of = dict(zip(op.inputs, tensors, strict=True))
    if name in _CONVOLUTIONS:
        x, weight, bias = op.args[:3]
        transposed, groups, dim_read, dim_made = op.args[6], op.args[8], 1, 1
        if not _depends_on(run, x, weight, bias):
            return None
        blocks = tensor_of[weight].detach().flatten(2)
        blocks = blocks.reshape(groups, len(blocks) // groups, blocks.shape[1], -1)
        blocks = blocks.transpose(1, 2) if transposed else blocks
        pads = transposed or any(op.args[4])
    else:
        (a, b), bias = op.args[-2:], op.args[0] if len(op.args) == 3 else None
        x, weight = (a, b) if b.static else (b, a)
        dim_read, dim_made, pads = (-1, -1, False) if b.static else (-2, -2, False)
        if len(weight.shape) != 2 or not _depends_on(run, x, weight, bias):
            return None
        matrix = tensor_of[weight].detach()
        blocks = (matrix.T if b.static else matrix)[None, :, :, None]
    reads, makes = _along(run, x, dim_read), _along(run, op.output, dim_made)
    channels = run.channels(x)
    constants = np.full(len(reads), np.nan)
    known = reads != UNLABELED
    constants[known] = channels.values[np.searchsorted(channels.classes, reads[known])]
    return Reader(op, run.number(x), reads, makes, constants, bool(pads), blocks, bias)


def _depends_on(run: FollowedValues, x: Value, *others: Value | None) -> bool:
    """Whether a result depends on the network's inputs by `x` alone."""
    return run.varies(x) and not any(other is not None and run.varies(other) for other in others)


def _along(run: FollowedValues, value: Value, dim: int) -> Index:
    """The class of each index along a dimension."""
    dim %= len(value.shape)
    track = next((track for track in run.tracks(value) if track.shape[dim] > 1), None)
    if track is None:
        return np.full(value.shape[dim], UNLABELED)
    return np.asarray(np.moveaxis(track, dim, -1).reshape(-1, value.shape[dim])[0])
