"""Training in several processes: the same items, weights and scores as in one, and failures that reach all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import ROOT
from torchslim.errors import BudgetError, RequestError, TrainingError
from torchslim.train.batches import TrainingBatches
from torchslim.train.processes import ALONE, Processes, _described, is_lost
from torchslim.train.seeding import EpochBatches, Part
from torchslim.train.sharded import Sharded, is_sharded

SCRIPT = Path(__file__).with_name("cases_of_processes.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What the cases found, by number of processes and rank; all ran at the same time."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "together.py"), str(SCRIPT), str(folder), "1", "2", "4"],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    return {world: [torch.load(folder / f"{world}.{rank}") for rank in range(world)] for world in (1, 2, 4)}


def close(one: Any, other: Any) -> bool:
    """Equal within the noise of float32 sums in another order."""
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("world", "case"), [
    *((world, case) for world in (2, 4) for case in ("plain", "pressed", "pressed unread", "stream", "penalty alone")),
    *((2, case) for case in ("everything", "frozen norms", "ready batches", "loader", "gradual"))])
def test_it_ends_as_a_single_process_would(found: dict[int, list[dict[str, Any]]], world: int, case: str) -> None:
    (alone,), together = found[1], found[world]
    for each in together:
        assert close(alone[case]["weights"], each[case]["weights"])
        assert all(map(torch.equal, each[case]["weights"], together[0][case]["weights"]))
        assert each[case]["loss"] == pytest.approx(alone[case]["loss"], rel=1e-5)
        assert each[case]["score"] == pytest.approx(alone[case]["score"])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_penalty_counts_once_a_step(found: dict[int, list[dict[str, Any]]], world: int) -> None:
    """45 items in batches of 10, two a step: three steps, each of the rate times the weight, whatever the precision."""
    scales = found[world][0]["penalty alone"]["weights"][2]
    assert torch.allclose(scales, torch.full((6,), 1 - 3 * 0.05 * 0.5))


@pytest.mark.parametrize("world", [2, 4])
def test_each_item_is_seen_once(found: dict[int, list[dict[str, Any]]], world: int) -> None:
    """Of a stream, each process trains on its items of each batch; a batch of 3 is whole in all of 4 processes."""
    (alone,), seen = found[1], [each["seen"] for each in found[world]]
    for number, batch in enumerate(alone["seen"]):
        parts = [each[number] for each in seen]
        assert parts == [batch] * world if len(batch) < world else list(chain(*parts)) == batch
    assert {each["drawn"] for each in found[world]} == {alone["drawn"]}


def test_only_the_first_writes_and_all_go_on(found: dict[int, list[dict[str, Any]]]) -> None:
    """Without a folder in common, the others are given the checkpoint."""
    for rank, each in enumerate(found[2]):
        assert each["files"] == (["log.jsonl", "training"] if rank == 0 else [])
        assert each["resumed"] == each["whole"]
        assert each["plans"] == found[2][0]["plans"]
        assert each["told"] == ([] if rank else [1, 2, 2])  # as many steps as the shortest shard has, and the end


def test_what_fails_in_one_fails_in_all_with_its_message(found: dict[int, list[dict[str, Any]]]) -> None:
    first, second = found[2]
    assert first["broken item"] == "TrainingError: process 1 of 2: OSError: item torn"
    assert second["broken item"] == "OSError: item torn"
    for each in found[2]:
        assert each["bad loss"].startswith("TrainingError: epoch 1, step 1 (items ")
        assert "made by a training with processes=1 (now 2)" in each["other number"]
        assert "full: could not be written: no space left" in each["full disk"]
        assert "the processes have data of different lengths (8, 9)" in each["other data"]
        assert "tensor 2 float32, which can't be divided by items among 2 processes" in each["indivisible"]


def test_shards_of_different_lengths_give_one_model(found: dict[int, list[dict[str, Any]]]) -> None:
    first, second = (each["sharded"]["weights"] for each in found[2])
    assert all(map(torch.equal, first, second))


# --- what needs no second process -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("items", "world", "least", "parts", "counts"), [
    (10, 3, 1, [3, 3, 4], [3, 3, 4]),
    (4, 3, 2, [4, 4, 4], [4 / 3] * 3),
    (2, 3, 1, [2, 2, 2], [2 / 3] * 3),
    (6, 3, 2, [2, 2, 2], [2, 2, 2]),
])
def test_parts_of_a_batch(items: int, world: int, least: int, parts: list[int], counts: list[float]) -> None:
    each = [Part(rank, world, least) for rank in range(world)]
    assert [len(range(items)[part.of(items)]) for part in each] == parts
    assert [part.count(items) for part in each] == counts
    assert sum(counts) == pytest.approx(items)


@pytest.mark.parametrize("world", [2, 3])
def test_batches_of_a_dataset_are_divided(world: int) -> None:
    whole = list(EpochBatches(11, 4, 7, Part()))
    parts = [list(EpochBatches(11, 4, 7, Part(rank, world))) for rank in range(world)]
    for batches in zip(whole, *parts, strict=True):
        assert list(chain(*batches[1:])) == batches[0] or all(part == batches[0] for part in batches[1:])


def test_a_last_batch_of_one_item_is_left_out() -> None:
    assert list(map(len, EpochBatches(9, 4, 0, Part()))) == [4, 4]
    assert list(map(len, EpochBatches(3, 1, 0, Part()))) == [1, 1, 1]


def test_a_single_process_waits_for_no_one() -> None:
    with ALONE.agreed(), ALONE.connected():
        assert ALONE.broadcast(3) == 3
        assert ALONE.gather(3) == [3]
        assert ALONE.sums(1.0, 2.0) == [1.0, 2.0]
    with ALONE.file_of_first(None) as path:
        assert path is None
    assert ALONE.is_first
    assert ALONE.is_first_to_tell()


def test_a_lost_process_is_one_line() -> None:
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(TrainingError, match=r"^process 1 of 2: another process has ended or can't be reached; go on$"
                       ) as caught, Processes(1, 2).connected("go on"):
        raise gone
    assert is_lost(caught.value)
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost(RuntimeError("igloo/1.jpg: no picture"))
    assert not is_lost(TrainingError("data/gloo/NCCL: no picture"))
    with pytest.raises(RuntimeError, match="multiplied"), Processes(1, 2).connected():
        raise RuntimeError("can't be multiplied")


def test_errors_that_travel() -> None:
    assert _described(BudgetError("macs: no", {}, {})) == ("RequestError", "macs: no")
    assert _described(RequestError("no")) == ("RequestError", "no")
    assert _described(OSError("disk\nfull")) == ("", "OSError: disk")


def test_loaders_that_divide_themselves_are_known() -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.zeros(4))
    sampler: Any = torch.utils.data.DistributedSampler(data, num_replicas=2, rank=0)
    assert is_sharded(torch.utils.data.DataLoader(data, sampler=sampler))
    assert not is_sharded(torch.utils.data.DataLoader(data))


def test_sharded_batches_train_in_one_process() -> None:
    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield torch.ones(2, 3), torch.tensor([0, 1])

    batches = TrainingBatches(Sharded(Stream()), 64, 0)
    (batch,) = batches.epoch(0, torch.device("cpu"))
    assert (batch.count, batch.total, batches.steps) == (2, 2, None)
    assert nn.Linear(3, 2)(batch.inputs).shape == (2, 2)
