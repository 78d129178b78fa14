"""Training: it learns, it repeats to the bit, it goes on where it stopped, and it stops on nonsense."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from torchslim.errors import CheckpointError, MissingExtra, RequestError, TrainingError
from torchslim.train import Data, History, Progress, Slimming, evaluate, fit


class Blobs(Dataset[tuple[Tensor, int]]):
    """Three kinds of bright corner, with noise from three generators: torch's, NumPy's and Python's."""

    def __init__(self, count: int = 60) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pictures = 0.3 * torch.randn(count, 3, 8, 8, generator=generator)
        self.targets = [i % 3 for i in range(count)]
        for i, target in enumerate(self.targets):
            self.pictures[i, target, : 2 + target, :3] += 2.0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(1).item() + float(np.random.randn()) + random.random()
        return self.pictures[index] + 0.05 * noise, self.targets[index]


def net(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout),
                         nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 3))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Stop(Exception):
    """Stands for a process that is killed."""


def stop_at(epoch: int, step: int) -> Any:
    def watch(at: Progress) -> None:
        if (at.epoch, at.step, at.finished) == (epoch, step, False):
            raise Stop

    return watch


# --- it learns --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adamw", 0.01)])
def test_it_learns(optimizer: str, lr: float) -> None:
    model = net()
    before = evaluate(model, Blobs())
    history = fit(model, Blobs(), epochs=8, lr=lr, batch_size=16, optimizer=optimizer, held_out=Blobs())
    assert isinstance(history, History)
    assert len(history.loss) == len(history.accuracy) == 8
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert evaluate(model, Blobs()) >= 0.95 > before


def test_batches_that_come_ready() -> None:
    blobs = Blobs()
    batches = [(blobs.pictures[i::4], torch.tensor(blobs.targets[i::4])) for i in range(4)]
    model, other = net(), net()
    history = fit(model, batches, epochs=8, held_out=batches)
    assert history.accuracy[-1] >= 0.95
    loader = DataLoader(TensorDataset(blobs.pictures, torch.tensor(blobs.targets)), 15, shuffle=True)
    assert fit(other, loader, epochs=8, held_out=loader).accuracy[-1] >= 0.95


def test_a_stream_without_a_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            blobs = Blobs()
            return iter([(blobs.pictures[i::4], torch.tensor(blobs.targets[i::4])) for i in range(4)])

    seen: list[Progress] = []
    fit(net(), Stream(), epochs=2, progress=seen.append)
    assert [at.step for at in seen if at.finished] == [4, 4]
    assert seen[0].steps is None


def test_data_brings_its_own_held_out_part() -> None:
    data = Data("blobs", Blobs(), Blobs(12), ("a", "b", "c"), (3, 8, 8))
    model = net()
    history = fit(model, data, epochs=1)
    assert history.accuracy == (evaluate(model, data),)


def test_a_teacher_is_learnt_from() -> None:
    teacher, student = net(1, dropout=0.0), net(2, dropout=0.0)
    fit(teacher, Blobs(), epochs=6, batch_size=16)
    pictures = Blobs().pictures
    shuffled = TensorDataset(pictures, torch.randint(0, 3, (60,)))  # labels that are worth nothing
    before = state(teacher)
    teacher.train()
    fit(student, shuffled, epochs=10, lr=0.1, batch_size=20, teacher=teacher, alpha=1.0)
    assert same(before, state(teacher))
    assert teacher.training
    assert evaluate(student, Blobs()) >= 0.9


def test_sparsity_presses_scales() -> None:
    plain, pressed, half = net(), net(), net()
    fit(plain, Blobs(), epochs=4, batch_size=16)
    fit(pressed, Blobs(), epochs=4, batch_size=16, sparsity=0.1)
    fit(half, Blobs(), epochs=4, batch_size=16, sparsity=Slimming(half, weight=0.1))
    assert pressed[1].weight.abs().sum() < plain[1].weight.abs().sum() - 1
    assert same(state(pressed), state(half))


def test_a_loss_of_ones_own() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 192))
    blobs = Blobs()
    pairs = TensorDataset(blobs.pictures, blobs.pictures.flatten(1))
    history = fit(model, pairs, epochs=5, lr=0.05, loss=nn.functional.mse_loss)
    assert history.loss[-1] < history.loss[0]


def test_auxiliary_heads_are_trained() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.aux = nn.Linear(192, 3), nn.Linear(192, 3)

        def forward(self, x: Tensor) -> Any:
            return (self.main(x.flatten(1)), self.aux(x.flatten(1))) if self.training else self.main(x.flatten(1))

    model = Two()
    before = state(model)
    fit(model, Blobs(), epochs=1)
    assert not torch.equal(before["aux.weight"], model.aux.weight)
    assert 0 <= evaluate(model, Blobs()) <= 1


# --- it repeats, and goes on ------------------------------------------------------------------------------------------

def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    models = net(), net(), net()
    histories = [fit(model, Blobs(), epochs=2, seed=seed) for model, seed in zip(models, (7, 7, 8), strict=True)]
    assert same(state(models[0]), state(models[1]))
    assert histories[0] == histories[1] != histories[2]


def test_generators_of_the_caller_go_on_as_if_nothing_had_happened() -> None:
    def numbers() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    def seed() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    model = net()
    seed()
    expected = numbers()
    seed()
    fit(model, Blobs(), epochs=1)
    assert numbers() == expected


def test_workers_make_no_difference() -> None:
    alone, helped = net(), net()
    fit(alone, Blobs(), epochs=2)
    fit(helped, Blobs(), epochs=2, workers=2)
    assert same(state(alone), state(helped))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("epoch", "step"), [(1, 2), (2, 1), (3, 3)])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, optimizer: str, epoch: int,
                                                         step: int) -> None:
    options = {"epochs": 4, "lr": 0.02, "batch_size": 16, "optimizer": optimizer, "sparsity": 1e-3, "held_out": Blobs()}
    whole, broken, resumed = net(), net(), net(99)
    expected = fit(whole, Blobs(), **options)
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Stop):
        fit(broken, Blobs(), checkpoint=path, progress=stop_at(epoch, step), **options)
    if epoch == 1:
        resumed = net()
        assert not path.exists()
    seen: list[Progress] = []
    assert fit(resumed, Blobs(), checkpoint=path, progress=seen.append, **options) == expected
    assert same(state(whole), state(resumed))
    assert seen[0].epoch == epoch
    assert [at.score for at in seen if at.finished] == list(expected.score[epoch - 1:])


EVERYTHING = {
    "epochs": 4, "batch_size": 10, "lr": 0.01, "optimizer": "adamw", "schedule": "onecycle", "sparsity": 1e-3,
    "precision": "bf16", "accumulate": 2, "clip": 0.5, "ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "keep_best": True,
    "class_weights": "balanced", "label_smoothing": 0.1, "freeze": ("0.*",), "patience": 4, "channels_last": True}


class Boxes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Bright squares in pictures of two sizes."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        picture = torch.rand(3, 8 + 2 * (index % 2), 8)
        picture[:, 1:4, 2:6] += 1
        return picture, {"boxes": torch.tensor([[2.0, 1, 6, 4]]), "labels": torch.tensor([1])}


class Detector(nn.Module):
    """Gives its losses in train mode, and detections in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
        self.box, self.score = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, pictures: list[Tensor], targets: Any = None) -> Any:
        features = torch.stack([self.body(picture[None]).mean((0, 2, 3)) for picture in pictures])
        boxes, scores = self.box(features), self.score(features)
        if targets is not None:
            wanted = torch.cat([target["boxes"] for target in targets])
            return {"box": (boxes - wanted).abs().mean(), "score": nn.functional.softplus(-scores).mean()}
        return [{"boxes": box[None], "labels": torch.tensor([1]), "scores": score.sigmoid()}
                for box, score in zip(boxes, scores, strict=True)]


@pytest.mark.parametrize(("build", "data", "options"), [
    (net, Blobs, EVERYTHING),
    (lambda seed=0: (torch.manual_seed(seed), Detector())[1], Boxes,
     {"epochs": 4, "batch_size": 3, "accumulate": 2, "ema": 0.9, "clip": 1.0, "keep_best": True, "precision": "bf16"}),
], ids=["everything", "detection"])
def test_with_all_options_too(tmp_path: Path, build: Any, data: Any, options: dict[str, Any]) -> None:
    whole, broken, resumed, plain = build(), build(), build(99), build()
    expected = fit(whole, data(), held_out=data(), **options)
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Stop):
        fit(broken, data(), held_out=data(), checkpoint=path, progress=stop_at(3, 2), **options)
    seen: list[Progress] = []
    assert fit(resumed, data(), held_out=data(), checkpoint=path, progress=seen.append, **options) == expected
    assert seen[0].epoch == 3
    assert same(state(whole), state(resumed))
    again = build(5)
    fit(again, data(), held_out=data(), checkpoint=path, **options)  # finished
    assert same(state(whole), state(again))
    fit(plain, data(), held_out=data(), **{**options, "ema": 0.0})
    assert not same(state(whole), state(plain))


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second = net(), net(1)
    expected = fit(first, Blobs(), epochs=2, checkpoint=tmp_path / "c")
    seen: list[Progress] = []
    assert fit(second, Blobs(), epochs=2, checkpoint=tmp_path / "c", progress=seen.append) == expected
    assert not seen
    assert same(state(first), state(second))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    fit(net(), Blobs(), epochs=1, lr=0.05, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"lr=0\.05 \(now 0\.1\)"):
        fit(net(), Blobs(), epochs=1, lr=0.1, checkpoint=path)
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), Blobs(), epochs=1, lr=0.05, checkpoint=path)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:100], lambda raw: raw[:-7],
                                    lambda raw: b"x" * 99])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "c"
    fit(net(), Blobs(), epochs=1, checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="no checkpoint of this training"):
        fit(net(), Blobs(), epochs=1, checkpoint=path)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written"):
        fit(net(), Blobs(), epochs=1, checkpoint=tmp_path / ("c" * 254))  # a draft's name is longer than that
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "nowhere" / "c", tmp_path, tmp_path / "file" / "c", tmp_path / ("c" * 300)):
        with pytest.raises(RequestError, match=r"give a file such as training.safetensors in a folder that exists"):
            fit(net(), Blobs(), epochs=1, checkpoint=place)


# --- it leaves things as they were ------------------------------------------------------------------------------------

def test_modes_are_put_back() -> None:
    model = net()
    model[1].eval()
    before = [module.training for module in model.modules()]
    fit(model, Blobs(), epochs=1)
    assert [module.training for module in model.modules()] == before
    evaluate(model, Blobs())
    assert [module.training for module in model.modules()] == before
    model.eval()
    fit(model, Blobs(), epochs=1)
    assert not any(module.training for module in model.modules())


def test_nothing_else_is_left_on_the_model() -> None:
    model = net()
    attributes = set(vars(model))
    fit(model, Blobs(), epochs=1)
    assert set(vars(model)) == attributes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_stay() -> None:
    model = net()
    model[0].requires_grad_(False)
    before = state(model)
    fit(model, Blobs(), epochs=1)
    assert torch.equal(before["0.weight"], model[0].weight)
    assert not torch.equal(before["4.weight"], model[4].weight)


def test_a_last_batch_of_one_is_left_out() -> None:
    seen: list[Progress] = []
    fit(net(), Blobs(33), epochs=1, batch_size=16, progress=seen.append)
    assert seen[-1].step == seen[-1].steps == 2


# --- it stops on nonsense ---------------------------------------------------------------------------------------------

def test_a_loss_that_is_no_number_stops_before_it_does_harm(tmp_path: Path) -> None:
    blobs = Blobs()
    batches = [(blobs.pictures, torch.tensor(blobs.targets))] * 3
    poisoned = [*batches[:2], (torch.full_like(blobs.pictures, float("inf")), torch.tensor(blobs.targets))]

    class Turning:
        """Good in the first epoch, bad at the end of the second."""

        epochs = 0

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            self.epochs += 1
            return iter(batches if self.epochs == 1 else poisoned)

    model = net()
    model.eval()
    path = tmp_path / "c"
    with pytest.raises(TrainingError, match=r"epoch 2, step 3: the loss is nan; try a lower .* lr=0\.125"):
        fit(model, Turning(), epochs=3, lr=0.125, checkpoint=path)
    assert not model.training
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [left.name for left in tmp_path.iterdir()] == ["c"]
    fit(net(), batches, epochs=3, lr=0.125, checkpoint=path)


def test_no_data() -> None:
    empty = TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0))
    with pytest.raises(TrainingError, match="the dataset is empty"):
        fit(net(), empty)
    with pytest.raises(TrainingError, match="epoch 1: the data gave no batch"):
        fit(net(), [])
    with pytest.raises(TrainingError, match="held_out: no data"):
        fit(net(), Blobs(), epochs=1, held_out=empty)
    for nothing in (empty, []):
        with pytest.raises(TrainingError, match="evaluate: no data"):
            evaluate(net(), nothing)


def test_an_iterator_that_is_used_up() -> None:
    blobs = Blobs()
    with pytest.raises(TrainingError, match=r"epoch 2: the data gave no batch.* read once only"):
        fit(net(), iter([(blobs.pictures, torch.tensor(blobs.targets))]), epochs=2)


@pytest.mark.parametrize(("data", "words"), [
    (7, "data: got int 7, wanted an iterable of batches"),
    ([torch.zeros(4, 3, 8, 8)], "a batch is tensor 4x3x8x8 float32, wanted a pair"),
    ([(1, 2, 3)], "a batch is tuple of 3 .*, wanted a pair"),
])
def test_data_of_another_kind(data: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        fit(net(), data, epochs=1)
    with pytest.raises(RequestError, match=words):
        evaluate(net(), data)


SHOWN = {"sparsity": "weight=-1.0", "schedule": "milestones=()"}


@pytest.mark.parametrize("options", [
    {"epochs": -1}, {"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 0}, {"weight_decay": -1.0}, {"warmup": 1.0},
    {"optimizer": "lion"}, {"label_smoothing": 1.0}, {"temperature": 0.0}, {"alpha": 1.5}, {"sparsity": -1.0},
    {"precision": "fp8"}, {"precision": "fp16"}, {"accumulate": 0}, {"clip": 0.0}, {"ema": 1.0}, {"mixup": -1.0},
    {"schedule": "step"}, {"optimizer": "timm:lion_of_judah"}, {"momentum": 1.0},
    {"patience": 0}, {"class_weights": "even"}, {"class_weights": (1.0, -1.0, 1.0)}, {"tracker": "tensorbord"},
])
def test_numbers_that_make_no_sense(options: dict[str, Any]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(RequestError, match=re.escape(SHOWN.get(name, f"{name}={value!r}"))):
        fit(net(), Blobs(), **options)


def test_a_model_with_nothing_to_train() -> None:
    with pytest.raises(TrainingError, match="requires_grad"):
        fit(net().requires_grad_(False), Blobs())


def test_an_output_without_scores() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> str:
            return "cat"

    with pytest.raises(TrainingError, match="output is str, wanted a tensor of scores"):
        fit(Odd(), Blobs(), epochs=1)


def test_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"torchslim\[train\]"):
        fit(net(), Blobs())


def test_an_error_in_a_worker_is_one_line() -> None:
    class Torn(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise RequestError("picture 7: torn; glue it")

    with pytest.raises(RequestError, match=r"^picture 7: torn; glue it$"):
        fit(net(), Torn(), epochs=1, workers=1)


def test_evaluate_counts() -> None:
    model = nn.Flatten()
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert evaluate(model, TensorDataset(scores, torch.tensor([1, 0, 0, 0])), batch_size=3) == 0.75


# --- several processes ------------------------------------------------------------------------------------------------

def test_fewer_processes_than_asked_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="2 processes were asked for, 1 train together"):
        fit(net(), Blobs())
