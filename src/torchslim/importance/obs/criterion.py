"""A criterion by the error left when layers that read a channel are refitted without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance.activations import readers_of
from torchslim.importance.criterion import Criterion, Needs
from torchslim.importance.evidence import Evidence
from torchslim.importance.obs.cost_law import IDENTITY_LAW, PowerLaw
from torchslim.importance.obs.readers import Index, WeightReader, weight_readers
from torchslim.importance.obs.statistics import LayerStatistics, collect_statistics
from torchslim.importance.obs.trials import TrialCuts
from torchslim.importance.types import Scores
from torchslim.utils.layer_spec import LayerSpec

STEP = 64
"""Each step removes 1/STEP of the remaining channels, at least one."""
TINY = 1e-8
"""Share of the mean square added to each; constant inputs have none."""


@dataclass(frozen=True)
class OBS(Criterion):
    """Output error from removing the channel and refitting the layers that read it, per multiply-add saved.

    Optimal brain surgeon (Hassibi and Stork 1993) on whole channels: the second moments of a layer's inputs are the
    Hessian of its squared error, and their inverse gives both the refit and its residual error (Frantar and Alistarh
    2022, section 3; Kurtic et al. 2023, section 3.1). The channels of a group are removed greedily, lowest error first,
    and weights and inverse updated each time: a channel's price is its error when it is removed. Errors of a layer's
    output are weighted by the squared gradients of a random projection of the network's outputs; no labels are needed.

    Moments and gradients are those of a copy whose batch norms have the statistics of the batches, where channels that
    are inactive on these few images count as well. `compensate` makes the same refit.

    Prices rank the channels of a group but are not comparable between groups: a refit overfits a few images, the more
    so the deeper the layer. So some cuts of each group are tried: its cheapest channels are silenced, their readers
    refitted on every other batch, and the outputs compared on the other batches. A power law from prices to costs is
    fitted to the results (`PowerLaw`). Give at least two batches, of different images (of one place in one batch, of
    another in the next); else trials use the images of the fit.

    Attributes:
        damp: added to the moments, in mean squares of each input, against overfitting.
        tried: the shares of a group's channels silenced in trials, one run of a batch for each share and each half
            of the batches; () to use prices as costs. So are they where the shapes of outputs depend on the data (the
            boxes of a detector), since such outputs can't be compared.

    Raises:
        RequestError: the model fails on a batch, no measurable layer reads a group's channels, the damp is not
            positive, or a share is not in (0, 1].
    """

    damp: float = 0.3
    tried: tuple[float, ...] = (0.2, 0.6, 1.0)
    needs: ClassVar[Needs] = "inputs"
    name: ClassVar[str] = "obs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.damp, bool) or not isinstance(self.damp, int | float) or not 0 < self.damp < float("inf"):
            raise RequestError(f"OBS: damp={self.damp!r} found, a number above 0 wanted; try 0.3")
        tried = self.tried if isinstance(self.tried, tuple | list) else (None,)
        if not all(isinstance(share, int | float) and share is not True and 0 < share <= 1 for share in tried):
            raise RequestError(f"OBS: tried={self.tried!r} found, shares above 0 and up to 1 wanted; "
                               "try (0.2, 0.6, 1.0)")
        object.__setattr__(self, "tried", tuple(tried))

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        scores = []
        for group, costs in zip(groups, self.measured(groups, evidence), strict=True):
            if costs is None:
                raise RequestError(f"importance 'obs': no convolution or linear layer that ran on the data, and that "
                                   f"the outputs depend on, reads the channels of `{group.name}`; leave it alone with "
                                   "exclude=, or use importance='l2'")
            scores.append(costs)
        return scores

    def measured(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Scores | None]:
        """The scores of each group; None where no measurable layer reads the channels."""
        readers = readers_of(evidence.model)
        readings = [list(weight_readers(group, evidence, readers)) for group in groups]
        statistics = _layer_statistics(evidence, readings)
        known = {name: InverseMoments(name, moments, self.damp) for name, moments in statistics.items()}
        prices: dict[int, Scores] = {}
        for index, (group, group_readers) in enumerate(zip(groups, readings, strict=True)):
            blocks = [block for reading in group_readers if reading.layer in known
                      for block in _reader_blocks(reading, known)]
            if not blocks:
                continue
            prices[index] = _prices(group.channels, blocks)
            if not np.isfinite(prices[index]).all():
                raise RequestError(f"importance 'obs': layers that read the channels of `{group.name}` have weights or "
                                   "gradients that are not finite; look for NaN in the weights")
        laws = self._fit_laws(evidence, statistics, [readings[index] for index in prices], list(prices.values()))
        costs = {index: law.costs(prices[index]) / max(evidence.gains(groups[index]), 1.0)
                 for index, law in zip(prices, laws, strict=True)}
        return [costs.get(index) for index in range(len(groups))]

    def _fit_laws(self, evidence: Evidence, statistics: Mapping[str, LayerStatistics],
                  readings: Sequence[Sequence[WeightReader]], prices: Sequence[Scores]) -> list[PowerLaw]:
        """The power law of each group; the identity for all groups if one of them can't be tried."""
        trial_cuts = TrialCuts(evidence.model, evidence.batches, statistics, self.damp)
        laws = []
        for readers, reckoned in zip(readings, prices, strict=True) if self.tried else ():
            key = ("tried", self, *((reader.layer, reader.seen.tobytes()) for reader in readers))
            if key not in evidence.memo:
                evidence.memo[key] = trial_cuts.law(readers, reckoned, self.tried)
            if evidence.memo[key] is None:
                break
            laws.append(evidence.memo[key])
        return laws if len(laws) == len(prices) else [IDENTITY_LAW] * len(prices)


# --- statistics -----------------------------------------------------------------------------------------------

def _layer_statistics(evidence: Evidence, readings: Sequence[Sequence[WeightReader]]) -> dict[str, LayerStatistics]:
    """Statistics of all layers with a gradient; cached, and collected again for other layers."""
    wanted: dict[str, tuple[LayerSpec, list[Tensor]]] = {}
    for reading in (reader for readers in readings for reader in readers):
        columns = wanted.setdefault(reading.layer, (reading.spec, []))[1]
        columns += [reader for reader in reading.columns if not any(torch.equal(reader, other) for other in columns)]
    before = evidence.memo.get("probed")
    if before is None or not all(name in before[0] and _among(columns, before[0][name][1])
                                 for name, (_, columns) in wanted.items()):
        statistics = collect_statistics(evidence.model, evidence.batches, wanted, evidence.seed)
        evidence.memo["probed"] = before = wanted, {
            name: reader for name, reader in statistics.items() if reader.squared_gradients is not None}
    return dict(before[1])


def _among(columns: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(any(torch.equal(column, other) for other in others) for column in columns)


class InverseMoments:
    """Inverses of a layer's damped input moments, computed lazily."""

    def __init__(self, name: str, statistics: LayerStatistics, damp: float) -> None:
        self.name, self.statistics, self.damp = name, statistics, damp
        self.made: dict[int, Tensor] = {}

    def of(self, columns: Tensor) -> Tensor:
        """The inverse for a set of columns, (G, F, F).

        Raises:
            RequestError: the inputs are not finite, or the damp is too small.
        """
        index = next(i for i, known in enumerate(self.statistics.columns) if torch.equal(known, columns))
        if index not in self.made:
            moments = self.statistics.moments(index)
            squares = moments.diagonal(dim1=1, dim2=2)
            ridge = self.damp * squares + TINY * squares.mean(1, keepdim=True).clamp_min(TINY)
            if not moments.isfinite().all():
                raise RequestError(f"importance 'obs': `{self.name}` reads values that are not finite on the data; "
                                   "look for NaN in the batches and the weights")
            root, failed = torch.linalg.cholesky_ex(moments + torch.diag_embed(ridge))
            if failed.any():
                raise RequestError(f"importance 'obs': damp={self.damp} is too little for what `{self.name}` reads on "
                                   "the data; try 0.3")
            self.made[index] = torch.cholesky_inverse(root)
        return self.made[index]


# --- the prices ---------------------------------------------------------------------------------------------

@dataclass(eq=False)
class ReaderBlock:
    """Filters that read some of a group's channels, with K weights per channel.

    Attributes:
        channels: indices, (C,).
        weight: (N, C, K), each filter times the root of its squared gradients.
        inverse: of the input moments, (C, K, C, K).
    """

    channels: Index
    weight: Tensor
    inverse: Tensor

    def prices(self) -> Scores:
        """Residual error of refits without each channel, (C,)."""
        blocks = self.inverse.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight = self.weight.permute(1, 2, 0)
        return np.asarray((weight * torch.linalg.solve(blocks, weight)).sum((1, 2)).clamp_min(0))

    def eliminate(self, gone: Index) -> None:
        """Refit the filters without some channels and drop these."""
        lost = torch.from_numpy(np.isin(self.channels, gone))
        if not lost.any():
            return
        stays = ~lost
        size, taps = len(lost), self.inverse.shape[1]
        flat, columns = self.inverse.reshape(size * taps, -1), self.weight.flatten(1)
        out, left = (mask.repeat_interleave(taps).nonzero().squeeze(1) for mask in (lost, stays))
        refit = torch.linalg.solve(flat[out][:, out], flat[out][:, left])
        count = int(stays.sum())
        self.weight = (columns[:, left] - columns[:, out] @ refit).reshape(len(columns), count, taps)
        self.inverse = (flat[left][:, left] - flat[left][:, out] @ refit).reshape(count, taps, count, taps)
        self.channels = self.channels[stays.numpy()]


def _reader_blocks(reading: WeightReader, known: Mapping[str, InverseMoments]) -> Iterator[ReaderBlock]:
    """A block for each set of columns and each group of filters that reads some channels in it.

    A filter reads inputs `seen % fan_in`, each with all taps; `spot` maps these to positions among the set's columns,
    which select the inverse's entries.
    """
    inverses, spec = known[reading.layer], reading.spec
    taps, home = prod(spec.kernel), reading.seen // spec.fan_in
    # All inputs of a channel at once if one group of filters reads them, else one by one.
    one_block = bool((home == home[:, :1]).all())
    parts = [reading.seen] if one_block else [columns_at[:, None] for columns_at in reading.seen.T]
    squared_gradients = inverses.statistics.squared_gradients
    assert squared_gradients is not None
    roots = squared_gradients.reshape(spec.groups, -1).sqrt()
    for columns in reading.columns:
        spot = np.full(spec.fan_in * taps, -1)
        spot[columns.numpy()] = np.arange(len(columns))
        inverse = inverses.of(columns)
        for part in parts:
            for group in np.unique(part[:, 0] // spec.fan_in).tolist():
                channels = np.flatnonzero(part[:, 0] // spec.fan_in == group)
                sees = ((part[channels] % spec.fan_in)[:, :, None] * taps + np.arange(taps)).reshape(len(channels), -1)
                spots = spot[sees]
                if (spots < 0).all():
                    continue  # another group's columns
                spots = spots[spots >= 0].reshape(len(channels), -1)
                at = torch.from_numpy(spots.ravel())
                weight = reading.weight[group][:, columns[at]] * roots[group][:, None]
                size = spots.shape
                yield ReaderBlock(channels, weight.reshape(-1, *size), inverse[group][at][:, at].reshape(*size, *size))


def _prices(channels: int, blocks: Sequence[ReaderBlock]) -> Scores:
    """The price of each channel when it is removed, increasing in that order."""
    left, prices, dearest = np.arange(channels), np.zeros(channels), 0.0
    while len(left):
        price = np.zeros(channels)
        for block in blocks:
            price[block.channels] += block.prices()
        going = left[np.argsort(price[left], kind="stable")][:max(1, len(left) // STEP)]
        for channel in going.tolist():
            # Strictly increasing, so that sorting by price gives the order of removal.
            dearest = prices[channel] = max(price[channel], dearest * (1 + 1e-12))
        left = left[~np.isin(left, going)]
        for block in blocks if len(left) else ():
            block.eliminate(going)
    return prices
