"""Data by name: what is read, how it is divided, and what is refused."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from torchslim.errors import MissingExtra, RequestError
from torchslim.train import Data, load_data
from torchslim.train.dataset import stratified


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(sum(path.name.encode())).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for number in range(10):
            picture(tmp_path / "pets" / name / f"{number}.png", mode="L" if number == 3 else "RGB")
    return tmp_path / "pets"


# --- digits -----------------------------------------------------------------------------------------------------------

def test_digits() -> None:
    data = load_data("digits", seed=1)
    assert isinstance(data, Data)
    assert data.classes == tuple("0123456789")
    assert data.shape == (3, 32, 32)
    assert len(data.train) + len(data.test) == 1797
    assert abs(len(data.test) - 1797 / 5) < 5
    pixels = torch.stack([data.test[i][0] for i in range(len(data.test))])
    assert abs(pixels.mean()) < 0.05
    assert 0.9 < pixels.std() < 1.1
    counts = np.bincount([target for _, target in data.test])
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_digits_of_another_size() -> None:
    assert load_data("digits", size=8).test[0][0].shape == (3, 8, 8)


def test_the_seed_alone_chooses_what_is_held_out() -> None:
    first, again, other = (load_data("digits", size=8, seed=seed).test for seed in (3, 3, 4))
    torch.rand(7)
    assert torch.equal(first.pictures, again.pictures)
    assert not torch.equal(first.pictures[:300], other.pictures[:300])


def test_only_training_pictures_are_augmented() -> None:
    data = load_data("digits", size=16)
    assert torch.equal(data.test[5][0], data.test[5][0])
    assert not torch.equal(data.train[5][0], data.train[5][0])
    torch.manual_seed(1)
    once = data.train[5][0]
    torch.manual_seed(1)
    assert torch.equal(once, data.train[5][0])


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"torchslim\[digits\]"):
        load_data("digits")


def test_no_class_loses_all_its_items() -> None:
    targets = [0] * 100 + [1] * 2 + [2]
    train, test = stratified(targets, 0.2, seed=0)
    assert sorted(train + test) == list(range(103))
    assert {targets[i] for i in train} == {0, 1, 2}
    assert {targets[i] for i in test} == {0, 1}
    assert sum(targets[i] == 0 for i in test) == 20


# --- folders ----------------------------------------------------------------------------------------------------------

def test_a_folder_is_divided(folder: Path) -> None:
    data = load_data(f"folder:{folder}", size=64, seed=0)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (16, 4)
    assert data.train[0][0].shape == data.test[0][0].shape == (3, 64, 64)
    assert sorted(target for _, target in data.test) == [0, 0, 1, 1]


def test_a_folder_of_large_pictures_by_default(folder: Path) -> None:
    data = load_data(f"folder:{folder}")
    assert data.shape == (3, 224, 224)
    assert data.train[3][0].shape == data.test[0][0].shape == (3, 224, 224)


def test_no_folder_and_one_class_are_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="is no folder; give a folder"):
        load_data(f"folder:{folder / 'nowhere'}")
    with pytest.raises(RequestError, match=r"one folder \(pets\), at least 2 classes"):
        load_data(f"folder:{folder.parent}")


def test_a_picture_cut_short_is_named(folder: Path) -> None:
    data = load_data(f"folder:{folder}", size=32)
    for path in (folder / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(RequestError, match=r"cat/\d\.png: not a picture that can be read"):
        [data.train[i] for i in range(len(data.train))]
    with pytest.raises(RequestError, match=r"^10 of 20 pictures can't be read: \S*cat/0\.png \(OSError: "):
        load_data(f"folder:{folder}", size=32)


# --- torchvision ------------------------------------------------------------------------------------------------------

def test_a_dataset_on_disk(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = np.random.default_rng(0).integers(0, 255, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
    data = load_data(f"torchvision:MNIST@{tmp_path}")
    assert (len(data.train), len(data.test), len(data.classes)) == (20, 10, 10)
    assert data.shape == (3, 28, 28)
    assert data.train[4][0].shape == (3, 28, 28)
    assert [target for _, target in (data.test[i] for i in range(10))] == list(range(10))


@pytest.mark.parametrize(("spec", "words"), [
    ("torchvision:CIFAR10", "no root folder"),
    ("torchvision:CIFAR10@nowhere", "cannot be read from nowhere .* downloads nothing"),
    ("torchvision:cifar10@x", "did you mean CIFAR10"),
    ("torchvision:Caltech101@x", "no parts to train and to test on"),
])
def test_datasets_that_are_refused(spec: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words):
        load_data(spec)
    assert not list(tmp_path.iterdir())


# --- factories --------------------------------------------------------------------------------------------------------

FACTORY = """
import torch
from torch.utils.data import TensorDataset
from torchslim.train import Data

def tensors(size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(TensorDataset(torch.randn(n, 3, size, size, generator=g), torch.arange(n) % 3) for n in (9, 6))

def whole():
    return Data("mine", *tensors(), ("a", "b", "c"), (3, 6, 6))

def empty():
    train, test = tensors()
    return train, TensorDataset(torch.zeros(0, 3), torch.zeros(0))

def single():
    return tensors()[0]

def items():
    return [1, 2], [3, 4]

def one_class():
    data = TensorDataset(torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.long))
    return data, data

def fails():
    raise OSError("the disk is gone")
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FACTORY)
    return tmp_path / "mine.py"


def test_a_factory_in_a_file(factory: Path) -> None:
    data = load_data(f"{factory}:tensors", size=10, seed=3)
    assert isinstance(data.train, TensorDataset)
    assert (len(data.train), len(data.test)) == (9, 6)
    assert data.shape == (3, 10, 10)
    assert data.classes == ("0", "1", "2")
    assert load_data(f"{factory}:whole").classes == ("a", "b", "c")


def test_a_factory_in_a_module(factory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factory.parent)
    factory.rename(factory.parent / "mine_as_a_module.py")
    before = list(sys.path)
    assert load_data("mine_as_a_module:tensors").shape == (3, 6, 6)
    assert sys.path == before


@pytest.mark.parametrize(("name", "words"), [
    ("empty", "the dataset to test on is empty"),
    ("single", "returned TensorDataset, wanted two datasets"),
    ("items", "an item is int, wanted a pair"),
    ("one_class", "1 class found, at least 2"),
    ("fails", "OSError: the disk is gone"),
    ("missing", "has no 'missing'"),
])
def test_factories_that_are_refused(factory: Path, name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_data(f"{factory}:{name}")


@pytest.mark.parametrize(("spec", "words"), [
    ("digit", "names no data; give digits, folder:PATH"),
    ("folder:", "names no data"),
    ("nowhere.py:make", "there is no file nowhere.py"),
    ("no_such_module:make", "ModuleNotFoundError"),
])
def test_other_specifications_are_refused(spec: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_data(spec)


def test_sizes_and_shares_that_make_no_sense() -> None:
    with pytest.raises(RequestError, match="size 2 found"):
        load_data("digits", size=2)
    with pytest.raises(RequestError, match=r"held_out 1\.5 found"):
        load_data("digits", held_out=1.5)
