"""Data that divide themselves over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DistributedSampler


@dataclass(frozen=True)
class Sharded:
    """Batches of one process: its own shard of a stream that divides itself, read by no other process.

    For `fit` under torchrun, where a stream is given each process its share by its library: `split_dataset_by_node` of
    Hugging Face's datasets, `split_by_node` of WebDataset. Other batches need no wrapper: all processes go through the
    same ones, and each trains on its items of each. An epoch ends as soon as one of them has no
    further batch.

    Attributes:
        batches: a re-iterable of `(inputs, targets)`, of any length, known or not.
    """

    batches: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def is_sharded(data: Any) -> bool:
    """Whether batches are a process's own: of `Sharded`, of a `DistributedSampler`, of Accelerate's loaders."""
    if isinstance(data, Sharded):
        return True
    samplers = (getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    return (any(isinstance(sampler, DistributedSampler) for sampler in samplers)
            or any(kind.__module__ == "accelerate.data_loader" for kind in type(data).__mro__))
