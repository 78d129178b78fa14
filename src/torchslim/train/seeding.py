"""Reproducible randomness: every epoch and every item has its own seed.

Random numbers of an epoch depend on the seed and the epoch's number only, so a resumed training equals an
uninterrupted one. Seeding each item makes the result independent of the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


class EpochBatches(Sampler[list[Key]]):
    """The keys of one epoch's batches, shuffled by the seed and the epoch: of each the part of one process.

    All processes together have the batches that a single one would have.

    Attributes:
        epoch: whose keys come; set before they are gone through.
    """

    def __init__(self, length: int, batch_size: int, seed: int, part: Part) -> None:
        self.length, self.batch_size, self.seed, self.part = length, batch_size, seed, part
        self.epoch = 0

    def __len__(self) -> int:
        # A batch norm has no variance on a last batch of one item.
        single_item_left = self.length > self.batch_size > 1 and self.length % self.batch_size == 1
        return -(-self.length // self.batch_size) - single_item_left

    def size(self, number: int) -> int:
        """Items of a batch, from 0, over all processes."""
        return min(self.batch_size, self.length - number * self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        for number in range(len(self)):
            batch = order[number * self.batch_size:][:self.size(number)]
            yield [(self.epoch, index) for index in batch[self.part.of(len(batch))]]


@dataclass(frozen=True)
class Part:
    """One process's part of each batch.

    Attributes:
        rank: the number of the process, from 0.
        world: the number of processes.
        least: a batch with fewer items than this for each process is given to all of them whole.
    """

    rank: int = 0
    world: int = 1
    least: int = 1

    def of(self, items: int) -> slice:
        """Which items of a batch it has."""
        if self.is_whole(items):
            return slice(0, items)
        return slice(items * self.rank // self.world, items * (self.rank + 1) // self.world)

    def count(self, items: int) -> float:
        """As how many items its part counts: over all processes, the items of the batch."""
        part = self.of(items)
        return items / self.world if self.is_whole(items) else part.stop - part.start

    def is_whole(self, items: int) -> bool:
        """Whether all processes have all items of a batch."""
        return items < self.least * self.world
