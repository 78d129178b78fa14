"""What cuts of a group cost, by what they are reckoned to cost: a power law through a few trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np

from torchslim.importance.types import Scores

MAX_POWER = 3.0
"""The most that a few trials are believed: costs that grow with the third power of prices."""
MIN_SPREAD = 1e-6
"""Prices whose logarithms differ by less are one price."""
TINY = float(np.finfo(np.float64).tiny)
_LARGEST = 600.0  # of logarithms: the largest number that scores can hold is e to the power of 709


class Trial(NamedTuple):
    """A cut: what its channels were priced at together, and what it cost."""

    price: float
    cost: float


@dataclass(frozen=True)
class PowerLaw:
    """What channels cost that go together: a power of their prices' sum.

    A price is what a channel's going adds to the error of the layers that read it. The first channels cost the outputs
    less than that, since the rest of the network makes up for them; the last ones take with them all that could make up
    for anything. So costs grow faster than prices, by a power that differs from group to group.

    Attributes:
        scale: the cost of a price of 1, as a logarithm.
        power: 1 or more.
    """

    scale: float
    power: float

    @classmethod
    def through(cls, trials: Sequence[Trial]) -> PowerLaw:
        """The nearest one to trials, one at least and all above 0: least squares of logarithms, within bounds.

        The power is from 1 to `MAX_POWER`. What is tried is measured on few pictures. Where small cuts lose more on
        these than they should, the power would come out below 1, and the last channels would be the cheapest: they
        never are. Trials of one price tell no power; it is 1.
        """
        prices, costs = np.log(np.asarray(trials, dtype=np.float64)).T
        spread, power = prices - prices.mean(), 1.0
        if np.ptp(prices) > MIN_SPREAD:
            power = float(np.clip(spread @ costs / (spread @ spread), 1.0, MAX_POWER))
        return cls(float((costs - power * prices).mean()), power)

    def costs(self, prices: Scores) -> Scores:
        """What each channel's going adds, (C,), when all that are cheaper are gone; in the order of the prices.

        Args:
            prices: finite and not negative, (C,).
        """
        order = np.argsort(prices, kind="stable")
        sums = np.cumsum(prices[order])
        logs = self.scale + self.power * np.log(np.maximum(sums, TINY))
        totals = np.where(sums > 0, np.exp(np.clip(logs, log(TINY), _LARGEST)), 0.0)
        # Sums of many that are alike are even but for rounding: nothing that goes later may come out cheaper.
        added = np.maximum.accumulate(np.diff(totals, prepend=0.0)) * (1 + 1e-12 * np.arange(len(order)))
        costs = np.empty(len(order))
        costs[order] = added
        return costs


IDENTITY_LAW = PowerLaw(0.0, 1.0)
"""Costs are prices."""
