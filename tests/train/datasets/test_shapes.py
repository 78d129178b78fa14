"""Drawn pictures of every task: targets against the pixels, the same by seed and number, and learnable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchslim.errors import RequestError
from torchslim.train import load_data
from torchslim.train.tasks import TASKS


def test_each_task_has_its_targets() -> None:
    for task in TASKS:
        data = load_data(f"shapes:{task}")
        assert (data.task, data.shape, len(data.train), len(data.test)) == (task, (3, 64, 64), 400, 100)
        for part in (data.train, data.test):
            picture, target = part[3]
            assert (picture.shape, picture.dtype) == ((3, 64, 64), torch.float32)
            if task == "classification":
                assert target == 3
            elif task == "multilabel":
                assert (target.shape, target.dtype, set(target.tolist()) <= {0.0, 1.0}) == ((4,), torch.float32, True)
            elif task == "regression":
                assert (target.shape, target.dtype) == ((2,), torch.float32)
                assert target.square().sum().sqrt() == pytest.approx(1)
            elif task == "segmentation":
                assert (target.shape, target.dtype) == ((64, 64), torch.int64)
            else:
                assert target["boxes"].shape == (len(target["labels"]), 4)
                assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
                assert ("keypoints" in target) == (task == "keypoints")
    assert load_data("shapes", size=32, channels=1).test[0][0].shape == (1, 32, 32)
    assert load_data("shapes", task="detection").task == "detection"


def test_the_tasks_agree_about_the_same_pictures() -> None:
    """Boxes, labels and key points by hand from the mask of the same number."""
    masks, boxes, labels = (load_data(f"shapes:{task}").test for task in ("segmentation", "detection", "multilabel"))
    for index in range(20):
        mask, target = masks[index][1], boxes[index][1]
        for (left, upper, right, lower), label in zip(target["boxes"].long().tolist(), target["labels"], strict=True):
            inside = mask[upper:lower, left:right] == label
            assert inside.any(0).all()
            assert inside.any(1).all()
            mask[upper:lower, left:right] = 0
        assert not mask.any()
        assert set((labels[index][1].nonzero().flatten() + 1).tolist()) == set(target["labels"].tolist())
    for index in range(10):
        target = load_data("shapes:keypoints").test[index][1]
        places = target["keypoints"][..., :2]
        assert (target["keypoints"][..., 2] == 2).all()
        corners = torch.cat([places.amin(1), places.amax(1)], 1)
        assert (corners - target["boxes"]).abs().max() <= 1.5
        tip, right, left = places.unbind(1)
        assert torch.allclose((tip - right).norm(dim=1), (tip - left).norm(dim=1), rtol=1e-4)
        assert ((right - tip)[:, 0] * (left - tip)[:, 1] > (right - tip)[:, 1] * (left - tip)[:, 0]).all()


def test_the_seed_and_the_number_decide() -> None:
    first, again, other = (load_data("shapes:detection", seed=seed) for seed in (1, 1, 2))
    torch.rand(3)
    assert torch.equal(first.test[7][0], again.test[7][0])
    assert not torch.equal(first.test[7][0], other.test[7][0])
    assert not torch.equal(first.test[7][0], first.test[8][0])
    assert not torch.equal(first.train[7][0], first.train[7][0])


def test_an_angle_is_that_of_the_bar() -> None:
    """By the principal axis of the light pixels."""
    data = load_data("shapes:regression")
    for index in range(5):
        picture, target = data.test[index]
        light = picture.amax(0) > 1.2
        y, x = (along - along.mean() for along in light.nonzero().float().unbind(1))
        angle = torch.atan2(2 * (x * y).mean(), (x * x).mean() - (y * y).mean())
        assert torch.allclose(target, torch.stack([angle.cos(), angle.sin()]), atol=0.05)


def test_a_small_network_learns_them() -> None:
    torch.manual_seed(0)
    data = load_data("shapes", size=32)

    def batch(part: object, count: int) -> tuple[Tensor, Tensor]:
        items = [part[index] for index in range(count)]  # type: ignore[index]
        return torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items])

    model = nn.Sequential(*(layer for width, out in ((3, 16), (16, 32), (32, 64)) for layer in (
        nn.Conv2d(width, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU())), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    inputs, targets = batch(data.train, 400)
    for _ in range(10):
        for chosen in torch.randperm(400).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
    inputs, targets = batch(data.test, 100)
    assert (model.eval()(inputs).argmax(1) == targets).float().mean() > 0.45  # chance: 0.25


@pytest.mark.parametrize(("spec", "options", "words"), [
    ("shapes:detecton", {}, "no task 'detecton'; did you mean detection"),
    ("shapes:detection", {"task": "segmentation"}, "is data for detection, task='segmentation' asked for; leave task"),
    ("shapes", {"task": "segment"}, "no task 'segment'; did you mean segmentation"),
    ("shapes:detection", {"size": 16}, "size 16 found, at least 32 pixels wanted for detection"),
    ("digits", {"task": "detection"}, "is data for classification"),
])
def test_tasks_that_are_refused(spec: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_data(spec, **options)  # type: ignore[arg-type]
