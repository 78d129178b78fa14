"""Functions of the user's own that return pairs of datasets: the task by the first target."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchslim.cli.options import DATA_FORMS
from torchslim.errors import RequestError
from torchslim.train import load_data
from torchslim.train.datasets.registry import FORMS

FACTORY = """
import torch

X = torch.zeros(3, 8, 8)

class Items:
    def __init__(self, *targets): self.targets_ = targets
    def __len__(self): return len(self.targets_)
    def __getitem__(self, index): return X, self.targets_[index]

def two(*targets):
    return Items(*targets), Items(*targets)

def boxes(*labels, **more):
    return {"boxes": torch.zeros(len(labels), 4), "labels": torch.tensor(labels, dtype=torch.int64), **more}

def classes(): return two(0, 2, 1)
def values(): return two(torch.tensor([0.5, 1.0]))
def bits(): return two(torch.tensor([0.0, 1.0, 1.0]))
def masks(): return two(torch.tensor([[0, 2], [255, 1]]))
def objects(): return two(boxes(1, 3), boxes())
def points(): return two(boxes(2, keypoints=torch.zeros(1, 5, 3)))
def named():
    train, test = two(torch.tensor([0.0, 1.0]))
    train.classes = ["cat", "dog"]
    return train, test
def misnamed():
    train, test = named()
    train.classes = ["cat"]
    return train, test
def scalar(): return two(0.5)
def short_mask(): return two(torch.zeros(4, 4, dtype=torch.uint8))
def no_labels(): return two({"boxes": torch.zeros(0, 4)})
def negatives(): return two(boxes(), boxes())
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORY)
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize(("name", "asked", "task", "classes"), [
    ("classes", None, "classification", ("0", "1", "2")),
    ("values", None, "regression", ("0", "1")),
    ("bits", "multilabel", "multilabel", ("0", "1", "2")),
    ("bits", "regression", "regression", ("0", "1", "2")),
    ("named", "multilabel", "multilabel", ("cat", "dog")),
    ("masks", None, "segmentation", ("0", "1", "2")),
    ("objects", None, "detection", ("1", "2", "3")),
    ("points", None, "keypoints", ("1", "2")),
    ("points", "detection", "detection", ("1", "2")),
])
def test_the_task_of_a_target(file: str, name: str, asked: str | None, task: str, classes: tuple[str, ...]) -> None:
    data = load_data(f"{file}:{name}", task=asked)
    assert (data.task, data.classes, data.shape) == (task, classes, (3, 8, 8))


@pytest.mark.parametrize(("name", "asked", "words"), [
    ("bits", None, 'which may be several classes or predicted values; give task="multilabel" or "regression"'),
    ("values", "multilabel", "is data for regression, task='multilabel' asked for"),
    ("scalar", None, "the first target is float 0.5, wanted a class index"),
    ("short_mask", None, "tensor 4x4 uint8, wanted a class index .int., a float32 vector, an int64 mask"),
    ("no_labels", None, "the first target has no 'labels'"),
    ("negatives", None, "no boxes in any target"),
    ("misnamed", "multilabel", "1 names in `classes`, and targets of 2 values"),
])
def test_targets_that_are_refused(file: str, name: str, asked: str | None, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_data(f"{file}:{name}", task=asked)


def test_the_command_line_lists_the_same_forms() -> None:
    assert FORMS == DATA_FORMS


@pytest.mark.parametrize(("spec", "words"), [
    ("foldr:pictures", r"names no data; give digits, .*did you mean folder\?"),
    ("Masks:pictures", r"did you mean masks\?"),
    ("shape", r"did you mean shapes\?"),
    ("coco:", "names no data; give digits, folder:PATH, masks:PATH, coco:IMAGES@FILE.json"),
])
def test_misspelt_kinds(spec: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_data(spec)
