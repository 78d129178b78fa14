"""Masks, boxes and key points move with the picture: painted things against what is said of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from torchslim.train.datasets.augmentation import Placement, letterbox, transforms


def target(*boxes: list[float], points: list[list[list[float]]] | None = None) -> dict[str, torch.Tensor]:
    made = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.ones(len(boxes), dtype=torch.int64)}
    return made if points is None else {**made, "keypoints": torch.tensor(points)}


def test_a_letterbox_by_hand() -> None:
    """40x20 into 64: 1.6 times as large, 64x32, 16 pixels of grey above and below."""
    _, plain = transforms("keypoints", 64, 3)
    picture, placed = plain(Image.new("RGB", (40, 20), (255, 0, 0)),
                            target([10.0, 5.0, 20.0, 15.0], points=[[[10.0, 5.0, 2.0], [0.0, 0.0, 0.0]]]))
    assert placed["boxes"].tolist() == [[16, 24, 32, 40]]
    assert placed["keypoints"].tolist() == [[[16, 24, 2], [0, 0, 0]]]
    assert picture[:, 15].unique().tolist() == [pytest.approx(114 / 255)]
    assert picture[:, 16, 0].tolist() == [1, 0, 0]
    _, plain = transforms("segmentation", 64, 1)
    picture, mask = plain(Image.new("L", (40, 20), 200), Image.new("L", (40, 20), 3))
    assert (mask[16:48] == 3).all()
    assert (mask[:16] == 255).all()
    assert picture[0, 0].abs().max() < 0.01


def test_a_mirrored_picture_moves_boxes_and_exchanges_points() -> None:
    placement = Placement((10, 10), (10, 10), (0, 0), 10, mirrored=True)
    assert placement.boxes(torch.tensor([[1.0, 2.0, 4.0, 5.0]])).tolist() == [[6, 2, 9, 5]]
    torch.manual_seed(0)
    left_right = [[[2.0, 5.0, 2.0], [8.0, 5.0, 2.0]]]
    whole = target([1.0, 1.0, 9.0, 9.0], points=left_right)
    orders = set()
    for pairs in ((1, 0), None):
        train, _ = transforms("keypoints", 16, 3, pairs=pairs)
        for _ in range(30):
            _, placed = train(Image.new("RGB", (10, 10)), whole)
            orders |= {bool(left < right) for (left, _, seen), (right, _, other) in placed["keypoints"].tolist()
                       if seen and other}
    assert orders == {True}, "the left point stays left: exchanged where mirrored, and never mirrored without pairs"


def test_what_is_cut_off_goes() -> None:
    """A box of the whole picture stays, one of a corner goes when little of it is seen; points outside are unseen."""
    torch.manual_seed(0)
    train, _ = transforms("keypoints", 32, 3, pairs=(0,))
    counts = set()
    for _ in range(60):
        _, placed = train(Image.new("RGB", (40, 40)), target(
            [0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 6.0, 6.0], points=[[[20.0, 20.0, 2.0]], [[1.0, 1.0, 1.0]]]))
        counts.add(len(placed["labels"]))
        for (left, upper, right, lower), ((x, y, seen),) in zip(placed["boxes"].tolist(),
                                                               placed["keypoints"].tolist(), strict=True):
            assert 0 <= left < right <= 32
            assert 0 <= upper < lower <= 32
            assert (0 <= x <= 32 and 0 <= y <= 32) if seen else (x, y) == (0, 0)
    assert counts == {1, 2}
    for count in (0, 1):
        assert train(Image.new("RGB", (300, 1)), {
            **target(*[[0.0, 0.0, 300.0, 1.0]] * count), "keypoints": torch.zeros(count, 1, 3),
        })[1]["keypoints"].shape == (count, 1, 3)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(20, 150), height=st.integers(20, 150), seed=st.integers(0, 10**6), data=st.data())
def test_a_painted_rectangle_stays_in_its_box(width: int, height: int, seed: int, data: st.DataObject) -> None:
    """Of the picture, of the mask, and of the key points at its corners, after one and the same random placement."""
    left, upper = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    right, lower = data.draw(st.integers(left + 4, width)), data.draw(st.integers(upper + 4, height))
    values = np.zeros((height, width, 3), np.uint8)
    values[upper:lower, left:right, 0] = 255
    picture, mask = Image.fromarray(values), Image.fromarray(values[..., 0] // 255)
    corners = [[[float(left), float(upper), 2.0], [float(right), float(lower), 2.0]]]
    boxes = target([float(left), float(upper), float(right), float(lower)], points=corners)
    size = 64
    results = []
    for task, wanted in (("keypoints", boxes), ("segmentation", mask)):
        train, _ = transforms(task, size, 3, pairs=(1, 0))
        torch.manual_seed(seed)
        results.append(train(picture, wanted))
    (shown, placed), (_, placed_mask) = results
    red = shown[0] - shown[1]  # whatever the colours became, what is around the picture has none
    _same((red > 0.5 * red.amax()) & (red > 0.05), placed["boxes"])
    _same(placed_mask == 1, placed["boxes"])
    for box, points in zip(placed["boxes"].tolist(), placed["keypoints"], strict=True):
        for x, y, seen in points.tolist():
            if seen:
                assert min(abs(x - box[0]), abs(x - box[2])) < 1e-3
                assert min(abs(y - box[1]), abs(y - box[3])) < 1e-3


def _same(pixels: torch.Tensor, boxes: torch.Tensor) -> None:
    if not len(boxes) or not pixels.any():
        return
    rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert max(abs(float(a) - b) for a, b in zip(found, boxes[0].tolist(), strict=True)) <= 1.5, (found, boxes)


def test_pictures_of_any_proportions() -> None:
    for source in ((1, 1), (300_000, 1), (1, 5000)):
        placement = letterbox(source, 64)
        assert placement.picture(Image.new("L", source), 0, Image.Resampling.BILINEAR).size == (64, 64)
        for task in ("multilabel", "regression"):
            for transform in transforms(task, 224, 3):
                assert transform(Image.new("RGB", source), 0)[0].shape == (3, 224, 224)


def test_no_other_random_numbers_are_asked_for() -> None:
    train, _ = transforms("detection", 32, 3)
    picture = Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3))
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(train(picture, target([5.0, 5.0, 25.0, 25.0])))
        np.random.default_rng().random()
    for first, second in pairwise(results):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1]["boxes"], second[1]["boxes"])
