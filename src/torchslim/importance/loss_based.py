"""Criteria by the change of a loss when a channel is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from torchslim.coupling.groups import ChannelGroup
from torchslim.importance.criterion import Criterion, Needs
from torchslim.importance.evidence import Evidence
from torchslim.importance.types import Scores


@dataclass(frozen=True)
class Taylor(Criterion):
    """Squared first-order change of the loss when the channel is silenced, mean over batches.

    Molchanov et al. 2019, equation 8, with the weights that read the channel as its parameters. Not normalised by
    group: the same loss measures all.
    """

    needs: ClassVar[Needs] = "labels"
    name: ClassVar[str] = "taylor"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        evidence.gradients.prepare(groups)
        return [np.asarray(np.square(evidence.gradients.changes(group)).mean(axis=0)) for group in groups]


@dataclass(frozen=True)
class Hessian(Criterion):
    """Second-order change of the loss when the weights that read the channel are set to zero, without cross terms.

    Optimal brain damage (LeCun et al. 1989, equation 5), with squared gradients as the Hessian's diagonal (Theis et
    al. 2018): half the sum of (weight x gradient)^2, mean over batches; batches of one sample give the empirical Fisher
    information.
    """

    needs: ClassVar[Needs] = "labels"
    name: ClassVar[str] = "hessian"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        evidence.gradients.prepare(groups)
        return [np.asarray(evidence.gradients.squares(group).mean(axis=0) / 2) for group in groups]
