"""The measured cost of a group's cuts as a power law of their price, fitted to a few trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np

from torchslim.importance.types import Scores

MAX_POWER = 3.0
"""Upper bound of the power fitted to trials."""
MIN_SPREAD = 1e-6
"""Prices closer than this in logarithm count as equal."""
TINY = float(np.finfo(np.float64).tiny)
_LARGEST = 600.0  # maximal logarithm of a cost; float64 overflows above e^709


class Trial(NamedTuple):
    """A tried cut: the sum of its channels' prices and its cost."""

    price: float
    cost: float


@dataclass(frozen=True)
class PowerLaw:
    """The cost of removing several channels at once: a power of the sum of their prices.

    A price is the error that removing a channel adds to the layers that read it. The other channels compensate for the
    first ones removed, but not for the last ones. So costs grow faster than prices, with a power that differs between
    groups.

    Attributes:
        scale: logarithm of the cost at price 1.
        power: 1 or more.
    """

    scale: float
    power: float

    @classmethod
    def through(cls, trials: Sequence[Trial]) -> PowerLaw:
        """Least-squares fit of logarithms to trials: at least one, all above 0.

        The power is clipped to [1, `MAX_POWER`]: trials on few images are noisy, and a power below 1 would make the
        last channels the cheapest. It is 1 where all trials have one price.
        """
        prices, costs = np.log(np.asarray(trials, dtype=np.float64)).T
        spread, power = prices - prices.mean(), 1.0
        if np.ptp(prices) > MIN_SPREAD:
            power = float(np.clip(spread @ costs / (spread @ spread), 1.0, MAX_POWER))
        return cls(float((costs - power * prices).mean()), power)

    def costs(self, prices: Scores) -> Scores:
        """The cost that removing each channel adds when all cheaper ones are removed, (C,); ordered as prices.

        Args:
            prices: finite and not negative, (C,).
        """
        order = np.argsort(prices, kind="stable")
        sums = np.cumsum(prices[order])
        logs = self.scale + self.power * np.log(np.maximum(sums, TINY))
        totals = np.where(sums > 0, np.exp(np.clip(logs, log(TINY), _LARGEST)), 0.0)
        # Rounding must not make a later channel cheaper than an earlier one.
        added = np.maximum.accumulate(np.diff(totals, prepend=0.0)) * (1 + 1e-12 * np.arange(len(order)))
        costs = np.empty(len(order))
        costs[order] = added
        return costs


IDENTITY_LAW = PowerLaw(0.0, 1.0)
"""Costs are prices."""
