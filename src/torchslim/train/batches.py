"""Batches from a dataset of items, or from an iterable of ready batches; of each the part of one process of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from torchslim.errors import RequestError, TorchslimError, TrainingError
from torchslim.train.mixing import Mix
from torchslim.train.processes import ALONE, Processes
from torchslim.train.seeding import EpochBatches, Part, SeededItems
from torchslim.train.sharded import Sharded, is_sharded
from torchslim.utils.data import batch_length, describe, inputs_and_targets, is_dataset, iterate_batches
from torchslim.utils.inputs import map_tensors
from torchslim.utils.seeding import RandomStream, derive_seed, seeded

LABELLED = "batches (inputs, targets)"
Collate = Callable[[Sequence[Any]], tuple[Any, Any]]
"""From items to a batch; None for torch's own way, by stacking."""


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch.

    Attributes:
        inputs, targets: of its items, on the device.
        count: as how many items it counts; `total`, over all processes.
        total: items of the whole batch.
    """

    inputs: Any
    targets: Any
    count: float
    total: float


class TrainingBatches:
    """The batches of each epoch, of which each process has its part.

    Attributes:
        steps: batches in an epoch; None for data of unknown length.
        count: items of the dataset; None for ready batches.
    """

    def __init__(self, data: Any, batch_size: int, seed: int, processes: Processes = ALONE,
                 workers: int = 0, collate: Collate | None = None, mix: Mix | None = None, least: int = 1) -> None:
        """Args: see `fit`; least: the fewest items of a batch that a process can train on."""
        self._seed, self._mix, self._processes = seed, mix, processes
        self._part = Part(processes.rank, processes.world, least)
        self._order: EpochBatches | None = None
        self.count: int | None = None
        self._batches: Iterable[Any] = data.batches if isinstance(data, Sharded) else data
        self._sharded = is_sharded(data)
        if is_dataset(data):
            if len(data) == 0:
                raise TrainingError("fit: the dataset is empty; give it items")
            self.count = len(data)
            self._order = EpochBatches(len(data), batch_size, seed, self._part)
            # A separate generator keeps the caller's state unchanged.
            self._batches = DataLoader(SeededItems(data, seed), batch_sampler=self._order, num_workers=workers,
                                       collate_fn=collate, generator=torch.Generator())
        else:
            iterate_batches(self._batches, LABELLED)
        self.steps = _length(self._batches)

    def check_same(self) -> None:
        """Check that all processes have data of one length; of different shards the shortest counts.

        Raises:
            RequestError: they do not.
        """
        lengths = self._processes.gather(self.steps if self._order is None else self._order.length)
        if self._sharded:
            self.steps = None if None in lengths else min(lengths)
        elif len(set(lengths)) > 1:
            raise RequestError(f"fit: the processes have data of different lengths ({', '.join(map(str, lengths))}); "
                               "give all of them the same data, or what is a process's own as torchslim.train.Sharded")

    def epoch(self, epoch: int, device: torch.device) -> Iterator[Batch]:
        """The parts of an epoch's batches, on the device."""
        if self._order is None:
            batches = self._own_batches() if self._sharded else self._parts(epoch)
        else:
            self._order.epoch = epoch
            sizes = map(self._order.size, range(len(self._order)))
            batches = ((batch, self._part.count(size), size)
                       for size, batch in zip(sizes, one_line_errors(self._batches), strict=True))
        for number, (batch, count, total) in enumerate(batches):
            if not total:
                raise TrainingError(f"fit: batch {number + 1} has no items; leave empty batches out")
            inputs, targets = _to_device(batch, device)
            if self._mix is not None:
                # Seeded by the batch's number, so that neither workers nor interruptions change it.
                with seeded(derive_seed(self._seed, epoch, self._part.rank, number), devices=False):
                    inputs, targets = self._mix(inputs, targets)
            yield Batch(inputs, targets, count, total)

    def items(self, epoch: int, number: int) -> list[int]:
        """The process's items of an epoch's batch, from 1, by their places in the dataset; none of ready batches."""
        if self._order is None:
            return []
        self._order.epoch = epoch
        return [index for _, index in list(self._order)[number - 1]]

    def _parts(self, epoch: int) -> Iterator[tuple[Any, float, float]]:
        """The process's items of ready batches. All processes go through the same ones: one stream of randomness."""
        if self._part.world == 1:
            for batch in one_line_errors(self._batches):
                items = _count(batch)
                yield batch, items, items
            return
        stream = RandomStream(derive_seed(self._seed, epoch, 0))
        with self._processes.agreed(), stream:
            iterator = iter(one_line_errors(self._batches))
        while True:
            with self._processes.agreed(), stream:
                batch = next(iterator, None)
                items = 0 if batch is None else _count(batch)
            found = self._processes.gather("no" if batch is None else items)
            if len(set(found)) > 1:
                raise TrainingError("fit: the processes were given different batches, of "
                                    f"{', '.join(map(str, found))} items; give the same ones in the same order to all, "
                                    "or what is a process's own as torchslim.train.Sharded")
            if batch is None:
                return
            yield _divided(batch, items, self._part), self._part.count(items), items

    def _own_batches(self) -> Iterator[tuple[Any, float, float]]:
        """Batches of this process alone, as long as all processes have one."""
        iterator = iter(one_line_errors(self._batches))
        while True:
            with self._processes.agreed():
                batch = next(iterator, None)
            found = self._processes.gather(None if batch is None else _count(batch))
            if None in found:
                return
            yield batch, found[self._part.rank], sum(found)


def batches_of(data: Any, batch_size: int, device: torch.device, processes: Processes = ALONE,
               collate: Collate | None = None) -> Iterator[tuple[Any, Any]]:
    """Pairs `(inputs, targets)` on the device: one process's share of all batches, in order."""
    rank, world = processes.rank, processes.world
    if is_dataset(data):
        batches: Iterable[Any] = DataLoader(Subset(data, range(rank, len(data), world)), batch_size, collate_fn=collate)
    elif is_sharded(data):
        batches = iterate_batches(data.batches if isinstance(data, Sharded) else data, LABELLED)
    else:
        every = iterate_batches(data, LABELLED)
        batches = (batch for number, batch in enumerate(one_line_errors(every)) if number % world == rank)
    return (_to_device(batch, device) for batch in one_line_errors(batches))


def _count(batch: Any) -> int:
    """The items of a batch, by its targets."""
    _, targets = inputs_and_targets(batch)
    return len(targets) if _is_listed(targets) else batch_length(targets)


def _is_listed(tree: Any) -> bool:
    """Whether it has an entry an item: a list, or a tuple of dicts, as targets of boxes are collated."""
    return isinstance(tree, list) or (isinstance(tree, tuple) and all(isinstance(each, Mapping) for each in tree))


def _length(batches: Iterable[Any]) -> int | None:
    """How many there are; None where that is not known, as of a loader of a stream."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _divided(batch: Any, items: int, part: Part) -> Any:
    """A process's items of a batch: of tensors, by their first dimension, and of lists."""
    chosen = part.of(items)

    def of(tree: Any) -> Any:
        if _is_listed(tree) and len(tree) == items:
            return tree[chosen]
        if _is_listed(tree):
            raise _indivisible(tree, items, part.world)
        return type(tree)(map(of, tree)) if type(tree) is tuple else map_tensors(of_tensor, tree)

    def of_tensor(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) != items:
            raise _indivisible(tensor, items, part.world)
        return tensor[chosen]

    return tuple(map(of, inputs_and_targets(batch)))


def _indivisible(found: Any, items: int, world: int) -> TrainingError:
    return TrainingError(f"fit: a batch of {items} items has {describe(found)}, which can't be divided by items among "
                         f"{world} processes; give each process batches of its own as torchslim.train.Sharded")


def one_line_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """The same batches; an error that a worker of a loader sends with its traceback is raised as its message."""
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except TorchslimError as error:
            lines = str(error).strip().splitlines()
            if len(lines) < 2:
                raise
            raise type(error)(lines[-1].partition(": ")[2] or lines[-1]) from error
        yield batch


def _to_device(batch: Any, device: torch.device) -> tuple[Any, Any]:
    inputs, targets = map_tensors(lambda tensor: tensor.to(device), inputs_and_targets(batch))
    return inputs, targets
