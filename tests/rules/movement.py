"""An oracle for every rule: perturb one channel, see what changes, and hold the labels to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers import Calls
from torchslim.coupling.coupling import connected_components
from torchslim.rules import move_labels
from torchslim.rules.labels import LabelSpace
from torchslim.rules.options import CouplingOptions
from torchslim.tracing.graph import Graph
from torchslim.tracing.trace import trace


class Movement:
    """Where the channels of a convolution end up after `function(module, x)`, by the rules and in truth.

    The convolution copies its input, so that a channel is perturbed by perturbing the input's.

    Attributes:
        classes: the class of each of the convolution's output channels.
        frozen: whether each of them must stay.
        reasons: of every label that must stay.
    """

    def __init__(self, function: Callable[..., Any], shape: tuple[int, ...], allow_approximate: bool = False,
                 **children: nn.Module) -> None:
        width, ndim = shape[1], len(shape) - 2
        kind = {0: nn.Conv1d, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        copying = kind(width, width, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            copying.weight.copy_(torch.eye(width).view(copying.weight.shape))
        self.x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        self.model = Calls(lambda s, x: function(s, s.copying(x)), copying=copying, **children).double().eval()
        self.graph: Graph = trace(self.model, self.x)
        self.space = LabelSpace(CouplingOptions(allow_approximate), batch_size=shape[0])
        for op in self.graph.ops:
            move_labels(self.space, op)
        labels = self.space.along(self.graph.state["copying.weight"], 0, self.graph.ops[0])
        assert labels is not None
        self.of = connected_components(self.space.num_labels, self.space.declared.unions)
        self.classes = self.of[labels]
        stay = np.zeros(self.space.num_labels, dtype=bool)
        for entry in self.space.declared.frozen:
            stay[self.of[entry.labels]] = True
        self.stay = stay
        self.frozen = stay[self.classes]
        self.reasons = [entry.reason for entry in self.space.declared.frozen]

    def outputs(self) -> list[Tensor]:
        """The labelled classes of every output element: shape (tracks, *output)."""
        found = []
        for value in self.graph.outputs:
            tracks = [np.broadcast_to(self.of[track], value.shape) for track in self.space.tracks(value)]
            found.append(torch.from_numpy(np.stack(tracks)) if tracks else torch.full((1, *value.shape), -1))
        return found

    def check(self) -> Movement:
        """Raise where a channel that may go changes an element that does not go with it."""
        labels = self.outputs()
        with torch.no_grad():
            before = self._run(self.x)
            for channel, (one, stays) in enumerate(zip(self.classes.tolist(), self.frozen.tolist(), strict=True)):
                if stays:
                    continue
                x = self.x.clone()
                x[:, channel] += torch.rand(x[:, channel].shape, dtype=x.dtype) + 0.5
                for old, new, tracks in zip(before, self._run(x), labels, strict=True):
                    changed = (old != new) & ~(old.isnan() & new.isnan()) if old.is_floating_point() else old != new
                    goes = (tracks == one).any(0)
                    assert not (changed & ~goes).any(), f"channel {channel} changes what does not go with it"
        return self

    def _run(self, x: Tensor) -> list[Tensor]:
        output = self.model(x)
        return [output] if isinstance(output, Tensor) else list(output)

    @property
    def free(self) -> bool:
        """Every channel may go by itself."""
        return not self.frozen.any() and len(set(self.classes.tolist())) == len(self.classes)

    @property
    def counts(self) -> list[int]:
        """How many elements of all outputs go with each channel."""
        return [sum(int((tracks == one).any(0).sum()) for tracks in self.outputs()) for one in self.classes.tolist()]
