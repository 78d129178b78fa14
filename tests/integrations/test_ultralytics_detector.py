"""Ultralytics' detectors, trained and scored as torchvision's are: by `fit`, `evaluate`, and the whole job.

Losses are held against those that Ultralytics' own call gives, boxes against a greedy suppression written out here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.ops import box_iou

import torchslim as ts
from helpers import Call
from torchslim.errors import RequestError, TrainingError
from torchslim.store.loading import build
from torchslim.train import evaluate, fit, load_data, metrics

pytest.importorskip("ultralytics", reason="without ultralytics: pip install 'torchslim[ultralytics]'")

from ultralytics import YOLO

from torchslim.integrations.ultralytics import detector, prune

NAMES = ["yolov8n", "yolov10n", "yolo11n", "yolo12n", "yolo26n"]
TARGETS = [{"boxes": torch.tensor([[4.0, 8, 40, 60], [30, 2, 62, 20]]), "labels": torch.tensor([3, 1])},
           {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]


def model_of(name: str, classes: int = 3) -> Any:
    torch.manual_seed(0)
    model: Any = build(f"ultralytics:{name}.yaml?num_classes={classes + 1}")
    with torch.no_grad():  # scores that differ from place to place, as training gives them
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.uniform_(1, 3)
        for heads in (getattr(model.model[-1], key, None) for key in ("cv3", "one2one_cv3")):
            for head in heads or ():
                head[-1].bias.fill_(-3)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_are_its_own(name: str) -> None:
    model, pictures = model_of(name).train(), [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    losses = model(pictures, TARGETS)
    batch = {"img": torch.stack(pictures), "batch_idx": torch.tensor([0.0, 0.0]), "cls": torch.tensor([[2.0], [0.0]]),
             "bboxes": torch.tensor([[22.0, 34, 36, 52], [46, 11, 32, 18]]) / 64}
    wanted, _ = model(batch)
    assert list(losses) == ["box", "cls", "dfl"]
    assert torch.allclose(torch.stack(list(losses.values())), wanted / 2, rtol=1e-4)
    with pytest.raises(TrainingError, match="label 3, wanted 1 to 2; number labels from 1, or build the model with nu"):
        model_of(name, 2).train()(pictures, TARGETS)


def suppressed(rows: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Corners and scores of the boxes of a label that a greedy suppression leaves, the best first.

    Args:
        rows: (4 + classes, places): centre, width, height, scores.
    """
    x, y, width, height = rows[:4]
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)
    scores = rows[3 + label]
    kept, waiting = [], (scores > 0.001).nonzero().flatten().tolist()
    while waiting:
        kept.append(max(waiting, key=lambda place: float(scores[place])))
        waiting = [place for place in waiting if box_iou(corners[kept[-1:]], corners[[place]]).item() <= 0.7]
    return corners[kept].clamp(0, 64), scores[kept]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_those_that_a_greedy_suppression_leaves(name: str) -> None:
    model, picture = model_of(name, 2).eval(), torch.rand(3, 64, 64)
    found, = model([picture])
    rows = model(picture[None])[0][0]  # of a tensor it is the network that it was
    assert set(found["labels"].tolist()) == {1, 2}
    for label in (1, 2):
        boxes, scores = suppressed(rows, label)
        assert len(boxes) > 10
        assert torch.allclose(found["scores"][found["labels"] == label], scores)
        assert torch.allclose(found["boxes"][found["labels"] == label], boxes, atol=1e-3)


@torch.no_grad()
def test_an_end_to_end_head_needs_no_suppression() -> None:
    model, picture = model_of("yolo26n", 2).eval(), torch.rand(3, 64, 64)
    model.end2end = True
    found, = model([picture])
    rows = model(picture[None])[0][0]
    rows = rows[rows[:, 4] > 0.001]
    assert torch.equal(found["boxes"], rows[:, :4].clamp(0, 64))
    assert torch.equal(found["labels"], rows[:, 5].long() + 1)


@torch.no_grad()
def test_pictures_of_other_sizes_get_a_grey_edge() -> None:
    model, pictures = model_of("yolo11n").eval(), [torch.rand(3, 50, 96), torch.rand(3, 64, 40)]
    first, second = model(pictures)
    assert first["boxes"][:, 2].max() <= 96
    assert first["boxes"][:, 3].max() <= 50
    assert second["boxes"][:, 2].max() <= 40
    padded = torch.full((3, 64, 96), 114 / 255)
    padded[:, :50] = pictures[0]
    assert torch.equal(model([padded, padded])[0]["scores"], first["scores"])


@pytest.mark.parametrize("name", ["yolo11n", pytest.param("yolov10n", marks=pytest.mark.nightly)])
def test_a_cut_one_is_trained_saved_and_reloaded(name: str, tmp_path: Path) -> None:
    source = f"ultralytics:{name}.yaml?num_classes=5"
    model, pictures = build(source).eval(), [torch.rand(3, 64, 64)]
    slim, plan = ts.prune(model, pictures, macs=0.5, importance="l2")
    assert plan.budgets[0].share <= 0.5
    assert ts.verify(model, slim, plan, pictures) < 1e-10
    data = load_data("shapes:detection", size=64)
    data = replace(data, train=Subset(data.train, range(4)), test=Subset(data.test, range(2)))
    history = fit(slim, data, epochs=1, batch_size=4)
    assert history.metric == "mAP"
    path = ts.save(slim.eval(), tmp_path / "slim.safetensors", plan=plan, source=source)
    again = ts.load(path)
    with torch.no_grad():
        for key, value in slim(pictures)[0].items():
            assert torch.equal(value, again(pictures)[0][key])
    assert evaluate(again, data) == evaluate(slim, data)


@pytest.mark.nightly
def test_files_for_other_runtimes_hold_the_predictions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from torchslim.deploy.runtimes import onnx_runner

    model = model_of("yolo11n").eval()
    assert ts.export(model, [torch.rand(3, 64, 50)], tmp_path / "slim.onnx").error < 1e-4
    [predictions] = onnx_runner(tmp_path / "slim.onnx", torch.rand(1, 3, 64, 64))()
    assert predictions.shape == (1, 4 + 3, 84)
    with torch.no_grad():
        assert set(model([torch.rand(3, 96, 96)])[0]) == {"boxes", "labels", "scores"}


def test_a_yolo_with_classes_of_its_own() -> None:
    yolo = prune(YOLO("yolo11n.yaml"), imgsz=64, macs=0.6, importance="l2")
    before = {name: value.shape for name, value in yolo.model.state_dict().items()}
    model = detector(yolo, 4)
    changed = {name for name, value in model.state_dict().items() if value.shape != before[name]}
    assert changed == {f"model.23.cv3.{level}.2.{kind}" for level in range(3) for kind in ("weight", "bias")}
    assert model.train()([torch.rand(3, 64, 64)] * 2, TARGETS)["cls"] > 0
    assert detector(yolo).model[-1].nc == 80
    assert {name: value.shape for name, value in yolo.model.state_dict().items()} == before


@pytest.mark.parametrize(("given", "said"), [
    (lambda: YOLO("yolo11n-seg.yaml"), "got SegmentationModel, wanted a detector of Ultralytics'"),
    (lambda: torch.nn.Linear(2, 2), "got Linear, wanted a detector"),
    (lambda: YOLO("yolo11n.yaml").model.fuse(verbose=False), "got a fused network, which can't be trained")])
def test_what_is_no_detector_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        detector(given())


def test_a_plain_yolo_is_refused_with_the_way() -> None:
    data = load_data("shapes:detection", size=64)
    for model in (YOLO("yolo11n.yaml"), YOLO("yolo11n.yaml").model):
        for call in (fit, evaluate):
            with pytest.raises(RequestError, match=r"integrations\.ultralytics\.detector\(model\)"):
                call(model, data)


@pytest.mark.parametrize(("source", "said"), [
    ("ultralytics:best.pt", "holds code, which is not run; name a function of yours"),
    ("ultralytics:mine/net.yaml", "a description of your own, entries of which Ultralytics would run as code; name a"),
    ("ultralytics:yolo11n-seg.yaml", r"finds no boxes; cut it by torchslim\.integrations\.ultralytics\.prune"),
    ("ultralytics:yolo11n", "did you mean yolo11n.yaml"),
    ("ultralytics:yolo11n.yaml?weights=DEFAULT", "weights='DEFAULT' found, and Ultralytics' files of weights hold co"),
    ("ultralytics:yolo11n.yaml?nc=3", "nc=3.*num_classes"),
    ("ultralytics:yolo11n.yaml?num_classes=1", "num_classes=1 found, wanted 2 or more")])
def test_what_is_not_built(source: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        build(source)


DATA = """
from dataclasses import replace
from torch.utils.data import Subset
from torchslim.train import load_data

def few(size=64, seed=0):
    data = load_data("shapes:detection", size=size, seed=seed)
    return replace(data, train=Subset(data.train, range(4)), test=Subset(data.test, range(4)))
"""


@pytest.mark.parametrize("name", ["yolo11n", *(pytest.param(name, marks=pytest.mark.nightly) for name in (
    "yolov8n", "yolov10n", "yolo12n", "yolo26n"))])
def test_the_whole_job(call: Call, tmp_path: Path, name: str) -> None:
    (tmp_path / "few.py").write_text(DATA)
    status, printed, err = call(
        "slim", f"ultralytics:{name}.yaml", "--data", f"{tmp_path}/few.py:few", "--size", 64, "--macs", "0.5",
        "--epochs", "1", "--batch-size", "4", "--importance", "l2", "--no-compensate", "--threads", "1", "--out",
        tmp_path / "run", "--json")
    assert status in (0, 1), err  # an epoch may teach nothing, which is said
    record = json.loads(printed)
    assert record["after"]["macs"] <= 0.5 * record["before"]["macs"]
    assert record["proof_error"] < 1e-9
    slim = ts.load(tmp_path / "run" / "slim.safetensors")
    assert metrics(slim, load_data(f"{tmp_path}/few.py:few", size=64)) == record["after"]["metrics"]
    assert (tmp_path / "run" / "slim.onnx").exists()
