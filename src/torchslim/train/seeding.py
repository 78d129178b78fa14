"""Reproducible randomness: every epoch and every item has a seed of its own.

Random numbers of an epoch depend on the seed and the epoch's number alone, so a resumed training repeats an
uninterrupted one exactly. Seeding each item makes the result independent of the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from torchslim.utils.seeding import derive_seed, seeded

Key = tuple[int, int]


class SeededItems(Dataset[Any]):
    """A dataset asked by `(epoch, index)`: the item at `index`, with every generator seeded for that pair."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        # The epoch travels in the key, because workers keep a copy of the dataset from before it began.
        epoch, index = key
        with seeded(derive_seed(self.seed, epoch, index), devices=False):
            return self.dataset[index]


class EpochOrder(Sampler[Key]):
    """The keys of one epoch, shuffled by the seed and the epoch, for one process of several.

    Every process gets equally many, so that none waits for another: the first keys fill the last round.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.length // self.world)

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        order += order[:len(self) * self.world - self.length]
        return iter([(self.epoch, index) for index in order[self.rank::self.world]])
