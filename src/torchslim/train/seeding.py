"""Reproducible randomness: every epoch and every item has its own seed.

Random numbers of an epoch depend on the seed and the epoch's number only, so a resumed training equals an
uninterrupted one. Seeding each item makes the result independent of the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from torchslim.utils.seeding import derive_seed, seeded

Key = tuple[int, int]


class SeededItems(Dataset[Any]):
    """A dataset indexed by `(epoch, index)`, with every generator seeded for that pair."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        # The epoch is part of the key, because workers have a copy of the dataset from before it.
        epoch, index = key
        with seeded(derive_seed(self.seed, epoch, index), devices=False):
            return self.dataset[index]


class EpochOrder(Sampler[Key]):
    """The keys of one epoch, shuffled by the seed and the epoch, for one process of several.

    Every process gets the same number: the first keys are repeated in the last round.
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
