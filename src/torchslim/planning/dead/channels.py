"""What is known of the channels of a value while a run is followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from torchslim.coupling.labeled_graph import Index
from torchslim.rules.tracks import Labels
from torchslim.tracing.graph import Value

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor.

    Attributes:
        classes: theirs, sorted.
        values: of each the one value that all its elements have, whatever the inputs are; NaN where there is none.
    """

    classes: Index
    values: Numbers


class FollowedValues(Protocol):
    """The values of a run that is followed."""

    def number(self, value: Value) -> int:
        """The number of a value, the same for its aliases."""

    def tracks(self, value: Value) -> Sequence[Labels]:
        """The classes of a value's elements."""

    def varies(self, value: Value) -> bool:
        """Whether a value may depend on the network's inputs."""

    def channels(self, value: Value) -> Channels:
        """What is known of a value that depends on the network's inputs."""
