"""Batches from a dataset of items, or from an iterable of ready batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from torchslim.errors import TorchslimError, TrainingError
from torchslim.train.mixing import Mix
from torchslim.train.seeding import EpochOrder, SeededItems
from torchslim.utils.data import inputs_and_targets, is_dataset, iterate_batches
from torchslim.utils.inputs import map_tensors
from torchslim.utils.seeding import derive_seed, seeded

LABELLED = "batches (inputs, targets)"
Collate = Callable[[Sequence[Any]], tuple[Any, Any]]
"""From items to a batch; None for torch's own way, by stacking."""


class TrainingBatches:
    """The batches of each epoch for one process of several.

    Attributes:
        steps: batches in an epoch; None for data of unknown length.
        count: items of the dataset; None for ready batches.
    """

    def __init__(self, data: Any, batch_size: int, seed: int, rank: int = 0, world: int = 1,
                 workers: int = 0, collate: Collate | None = None, mix: Mix | None = None) -> None:
        self._rank, self._world, self._seed, self._mix, self._batch_size = rank, world, seed, mix, batch_size
        self._order: EpochOrder | None = None
        self.count: int | None = None
        self._batches: Iterable[Any] = data
        if is_dataset(data):
            if len(data) == 0:
                raise TrainingError("fit: the dataset is empty; give it items")
            self.count = len(data)
            self._order = EpochOrder(len(data), seed, rank, world)
            # A batch norm has no variance on a last batch of one item.
            single_item_left = len(self._order) > batch_size > 1 and len(self._order) % batch_size == 1
            # A separate generator keeps the caller's state unchanged.
            self._batches = DataLoader(SeededItems(data, seed), batch_size, sampler=self._order,
                                       drop_last=single_item_left, num_workers=workers, collate_fn=collate,
                                       generator=torch.Generator())
        else:
            iterate_batches(data, LABELLED)
        length = len(self._batches) if hasattr(self._batches, "__len__") else None
        self.steps = length if length is None or self._order is not None else length // world

    def epoch(self, epoch: int, device: torch.device) -> Iterator[tuple[Any, Any]]:
        """Pairs `(inputs, targets)` on the device."""
        if self._order is None:
            batches = _to_device(_share_of_batches(self._batches, self._rank, self._world), device)
        else:
            self._order.epoch = epoch
            batches = _to_device(self._batches, device)
        return batches if self._mix is None else self._mixed(batches, epoch, self._mix)

    def items(self, epoch: int, number: int) -> list[int]:
        """The items of an epoch's batch, from 1, by their places in the dataset; none of ready batches."""
        if self._order is None:
            return []
        self._order.epoch = epoch
        return [index for _, index in self._order][(number - 1) * self._batch_size:number * self._batch_size]

    def _mixed(self, batches: Iterator[tuple[Any, Any]], epoch: int, mix: Mix) -> Iterator[tuple[Any, Any]]:
        """Mixed batches; seeded by their numbers, so that neither workers nor interruptions change them."""
        for number, (inputs, targets) in enumerate(batches):
            with seeded(derive_seed(self._seed, epoch, self._rank, number), devices=False):
                batch = mix(inputs, targets)
            yield batch


def batches_of(data: Any, batch_size: int, device: torch.device, rank: int = 0, world: int = 1,
               collate: Collate | None = None) -> Iterator[tuple[Any, Any]]:
    """Pairs `(inputs, targets)` on the device: one process's share of all batches, in order."""
    if is_dataset(data):
        share = Subset(data, range(rank, len(data), world))
        return _to_device(DataLoader(share, batch_size, collate_fn=collate), device)
    return _to_device(_share_of_batches(iterate_batches(data, LABELLED), rank, world, include_rest=True), device)


def _share_of_batches(batches: Iterable[Any], rank: int, world: int, include_rest: bool = False) -> Iterator[Any]:
    """One of every `world` batches; of an incomplete last round only with `include_rest`.

    In training, the other processes would wait for the gradients of a process without a batch.
    """
    round_: list[Any] = []
    for batch in batches:
        round_.append(batch)
        if len(round_) == world:
            yield round_[rank]
            round_ = []
    if include_rest and len(round_) > rank:
        yield round_[rank]


def _to_device(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except TorchslimError as error:  # a worker sends its traceback, whose last line is the message
            lines = str(error).strip().splitlines()
            if len(lines) < 2:
                raise
            raise type(error)(lines[-1].partition(": ")[2] or lines[-1]) from error
        inputs, targets = map_tensors(lambda tensor: tensor.to(device), inputs_and_targets(batch))
        yield inputs, targets
