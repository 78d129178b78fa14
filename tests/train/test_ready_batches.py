"""Batches that are ready: loaders of streams, empty ones, targets as tuples; a process's part of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from torchslim.errors import TrainingError
from torchslim.train import Progress, fit
from torchslim.train.batches import TrainingBatches, _divided
from torchslim.train.processes import join_processes
from torchslim.train.seeding import Part

CPU = torch.device("cpu")


class Stream(IterableDataset[Any]):
    """Five items, of which nobody knows the number."""

    def __iter__(self) -> Any:
        return iter([(torch.ones(2), index % 3) for index in range(5)])


def boxes(count: int) -> dict[str, Tensor]:
    return {"boxes": torch.zeros(count, 4), "labels": torch.ones(count, dtype=torch.int64)}


def test_a_loader_of_a_stream_without_a_length() -> None:
    seen: list[Progress] = []
    fit(nn.Linear(2, 3), DataLoader(Stream(), 2), epochs=1, progress=seen.append)
    assert [at.step for at in seen if at.finished] == [3]
    assert seen[0].steps is None


def test_a_batch_without_items_is_refused() -> None:
    batch = (torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(TrainingError, match="batch 2 has no items; leave empty batches out"):
        fit(nn.Linear(2, 3), [batch, (batch[0][:0], batch[1][:0])], epochs=1)


@pytest.mark.parametrize("kind", [list, tuple])
def test_targets_of_boxes_count_by_pictures(kind: type) -> None:
    """Not by the boxes of the first picture, which may have none."""
    batch = ([torch.zeros(3, 8, 8)] * 4, kind([boxes(0), boxes(3), boxes(1), boxes(1)]))
    (found,) = TrainingBatches([batch], 8, 0).epoch(0, CPU)
    assert (found.count, found.total) == (4, 4)
    pictures, targets = _divided(batch, 4, Part(1, 2))
    assert len(pictures) == 2
    assert [len(target["labels"]) for target in targets] == [1, 1]


def test_processes_that_no_launcher_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialState, "_shared_state", {})  # as in a new process
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrainingError, match=r"WORLD_SIZE=2 .*; start them with torchrun, or unset WORLD_SIZE$"):
        join_processes()
