"""Trainings that `test_processes.py` runs in one, two and four processes; each case keeps what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from torchslim.train import History, fit, fit_gradually
from torchslim.train.sharded import Sharded

ITEMS = 45  # not divisible by 2, by 4 or by the size of a batch


def net(norms: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(6)] if norms else []
    return nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(24, 3))


def pictures(count: int = ITEMS) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 6, 6, generator=numbers), torch.randint(0, 3, (count,), generator=numbers)


class Noisy(Dataset[Any]):
    """Augmented at random."""

    def __init__(self) -> None:
        self.pictures, self.classes = pictures()

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pictures[index] + 0.1 * torch.randn(3, 6, 6), int(self.classes[index])


class Stream:
    """Batches of unequal sizes, in an order drawn anew each time; counts what is read."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, classes = pictures()
        order = torch.randperm(ITEMS)
        for chosen in order.split([8, 3, 20, 1, 13]):
            self.drawn += len(chosen)
            yield inputs[chosen], classes[chosen]


class Watched(nn.Module):
    """Keeps the first value of each picture that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = net(), []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append([round(float(value), 4) for value in x[:, 0, 0, 0]])
        return self.net(x)


def trained(data: Any, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    model = net() if model is None else model
    given = {"epochs": 2, "batch_size": 10, "lr": 0.05, "held_out": TensorDataset(*pictures()), **options}
    history = fit(model, data, **given)
    return result(model, history)


def result(model: nn.Module, history: History) -> dict[str, Any]:
    return {"weights": [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())],
            "loss": history.loss, "score": history.score}


def unused() -> nn.Module:
    """With parameters that no step reads."""
    model = net()
    model[-1].add_module("spare", nn.BatchNorm2d(2))
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return model


def message(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main(rank: int, world: int, folder: Path) -> None:
    found: dict[str, Any] = {}
    data, stream, watched = Noisy(), Stream(), Watched()
    found["plain"] = trained(data, unused(), batch_size=11)  # the last batch has one item, and is left out
    found["pressed unread"] = trained(data, unused(), sparsity=0.01, accumulate=2)
    found["pressed"] = trained(data, Frozen(), sparsity=0.01, accumulate=3, clip=1.0)
    found["stream"] = trained(stream, watched)
    found["seen"], found["drawn"] = watched.seen, stream.drawn
    found["penalty alone"] = trained(data, Frozen(), sparsity=0.5, accumulate=2, precision="bf16", epochs=1,
                                     loss=nothing, momentum=0.0, weight_decay=0.0, schedule="constant")
    if world == 4:
        torch.save(found, folder / f"{world}.{rank}")
        return
    found["everything"] = trained(data, ema=0.9, keep_best=True, teacher=net(), optimizer="nadam", lr=1e-4)
    found["frozen norms"] = trained(data, net(norms=True), freeze=("1.*",), epochs=1)
    found["ready batches"] = trained([tuple(t[start:start + 8] for t in pictures()) for start in range(0, 45, 8)])
    found["loader"] = trained(DataLoader(TensorDataset(*pictures()), 7, shuffle=True), epochs=1)
    cut = fit_gradually(net(), data, torch.zeros(1, 3, 6, 6), macs=0.7, steps=1, epochs=2, batch_size=10, lr=0.05)
    found["gradual"] = result(cut.model, cut.history)
    found["plans"] = [plan.to_json() for plan in cut.plans]
    if world == 1:
        fit(net(), data, epochs=1, batch_size=10, checkpoint=folder / "of one")
    else:
        own = Sharded([(t[:4], c[:4]) for t, c in [pictures()] * (2 + rank)])
        model = net()
        found["told"] = []
        found["sharded"] = result(model, fit(model, own, epochs=1, progress=lambda at: found["told"].append(at.step)))
        files(rank, world, folder, found)
        failures(rank, world, folder, found)
    torch.save(found, folder / f"{world}.{rank}")


def nothing(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum() * 0


class Frozen(nn.Module):
    """A batch norm whose statistics never change, in train mode too, and whose scales learn."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(norms=True)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.net[1].training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def files(rank: int, world: int, folder: Path, found: dict[str, Any]) -> None:
    """Machines with a folder each: the first has the checkpoint."""
    own = folder / f"{world} {rank}"
    own.mkdir()
    options: dict[str, Any] = {"checkpoint": own / "training", "log": own / "log.jsonl", "momentum": 0.9}
    model = net()
    fit(model, Noisy(), epochs=3, batch_size=10, progress=lambda at: at.epoch == 2, **options)
    found["files"] = sorted(path.name for path in own.iterdir())
    again = net()
    history = fit(again, Noisy(), epochs=3, batch_size=10, **options)
    whole = net()
    expected = fit(whole, Noisy(), epochs=3, batch_size=10, momentum=0.9)
    found["resumed"] = [history.loss, *(p.tolist() for p in again.parameters())]
    found["whole"] = [expected.loss, *(p.tolist() for p in whole.parameters())]


def failures(rank: int, world: int, folder: Path, found: dict[str, Any]) -> None:
    last = rank == world - 1

    class Torn(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if last:
                raise OSError("item torn")
            return super().__getitem__(index)

    def bad(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() * (float("nan") if last else 0.0)

    found["broken item"] = message(lambda: fit(net(), Torn(), epochs=1))
    found["bad loss"] = message(lambda: fit(net(), Noisy(), epochs=1, loss=bad))
    found["other number"] = message(lambda: fit(net(), Noisy(), epochs=1, batch_size=10,
                                                checkpoint=folder / "of one"))
    found["other data"] = message(lambda: fit(net(), TensorDataset(*pictures(8 + last)), epochs=1))
    found["indivisible"] = message(lambda: fit(net(), [({"x": torch.zeros(2), "y": torch.zeros(8, 3)},
                                                       torch.zeros(8, dtype=torch.int64))], epochs=1))
    import torchslim.train.trainer as trainer

    keep, trainer.save_checkpoint = trainer.save_checkpoint, disk_full
    found["full disk"] = message(lambda: fit(net(), Noisy(), epochs=1, checkpoint=folder / "full"))
    trainer.save_checkpoint = keep


def disk_full(path: Path, *_: object) -> None:
    from torchslim.errors import CheckpointError

    raise CheckpointError(f"{path}: could not be written: no space left; free some")
