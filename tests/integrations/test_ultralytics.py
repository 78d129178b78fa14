"""A YOLO is cut, and what its own trainer, exporter and files do afterwards keeps its widths.

The example is this test in a process of its own; here is what it does not show.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import ROOT, tensors
from torchslim.errors import RequestError

pytest.importorskip("ultralytics", reason="without ultralytics: pip install 'torchslim[ultralytics]'")

from ultralytics import RTDETR, YOLO

import torchslim as ts
from torchslim.integrations.ultralytics import load, prune

TASKS = ["yolov8n", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb",
         "yolo11n-cls", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb", "yolov8n-cls", "yolo26n-seg", "yolo26n-pose",
         "yolo26n-obb", "yolo26n-cls"]


def widths(yolo: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in yolo.model.state_dict().items()}


@pytest.mark.parametrize("name", TASKS)
def test_the_neck_is_cut_and_the_predictions_stay(name: str) -> None:
    yolo = YOLO(f"{name}.yaml")
    before = widths(yolo)
    slim = prune(yolo, imgsz=64, macs=0.5)
    assert widths(yolo) == before
    assert type(slim).__name__ == "YOLO"
    assert slim.plan.budgets[0].share <= 0.5
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        shapes = [[tensor.shape for tensor in tensors(one.model.eval()(picture)[0])] for one in (yolo, slim)]
    assert shapes[0] == shapes[1]
    assert ts.verify(yolo.model, slim.model, slim.plan, picture) < 1e-10
    # What returns the maps beside the detections is no reason to keep a channel.
    assert not [entry for entry in slim.plan.left_alone if entry.reason == "the network's output"
                and entry.name.startswith("model.model.") and "cv2" not in entry.name]


def test_the_example(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = subprocess.run([sys.executable, ROOT / "examples" / "ultralytics_yolo.py", tmp_path], capture_output=True,
                          text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line.partition(":")[0]: line for line in done.stdout.splitlines()}
    share = float(re.findall(r"[\d.]+", lines["cut"])[0])
    assert 49 < share <= 50
    counts = {re.findall(r"[\d,]+ parameters", lines[said])[0] for said in ("trained", "reloaded", "trained again")}
    assert len(counts) == 1
    assert lines["exported"] == "exported: best.onnx 6 numbers a box"


def test_a_file_that_its_trainer_builds_anew_says_so(tmp_path: Path) -> None:
    slim = prune(YOLO("yolo11n-cls.yaml"), imgsz=64, macs=0.5)
    path = tmp_path / "slim.pt"
    slim.save(path)
    plain = YOLO(path)
    assert widths(plain) == widths(slim)
    with pytest.raises(KeyError, match=r"cut by torchslim.*integrations\.ultralytics\.load\(path\)\.train"):
        trainer(plain, nc=1000).get_model(plain.model.yaml, plain.model, verbose=False)
    again = load(path)
    assert trainer(again, nc=5).get_model(weights=again.model).model[-1].linear.out_features == 5
    assert trainer(again, nc=1000).get_model(weights=again.model).state_dict().keys() == again.model.state_dict().keys()
    with pytest.raises(RequestError, match="pretrained=False asks for; leave it out"):
        trainer(again, nc=5).get_model()


def trainer(yolo: Any, **data: Any) -> Any:
    """What of the trainer of a YOLO building a network takes."""
    kind = yolo.task_map[yolo.task]["trainer"]
    one = object.__new__(kind)
    one.data, one.resume = {"channels": 3, "kpt_shape": [17, 3], **data}, False
    one.args = SimpleNamespace(dropout=0.0, pretrained=True, cls_remap=None)
    return one


@pytest.mark.parametrize(("name", "data", "ends"), [
    ("yolo26n", {"nc": 3}, {"cv3.0.2", "one2one_cv3.2.2"}), ("yolo11n-cls", {"nc": 5}, {"linear"}),
    ("yolo26n-seg", {"nc": 3}, {"cv3.0.2", "proto.semseg.2"}),
    ("yolo11n-pose", {"nc": 1, "kpt_shape": [4, 3]}, {"cv4.0.2"}),
    ("yolo26n-pose", {"nc": 2, "kpt_shape": [4, 2]}, {"cv4_kpts.1", "cv3.1.2"})], ids=lambda item: str(item))
def test_other_data_gives_the_head_new_ends_and_changes_nothing_else(name: str, data: Any, ends: set[str]) -> None:
    slim = prune(YOLO(f"{name}.yaml"), imgsz=64, macs=0.5)
    assert type(trainer(slim, **data)).__name__.startswith("Slim")
    model = trainer(slim, **data).get_model(weights=slim.model)
    before = {name: value.shape for name, value in slim.model.state_dict().items()}
    changed = {name for name, value in model.state_dict().items() if value.shape != before[name]}
    last = f"model.{len(model.model) - 1}."
    assert {f"{last}{end}.weight" for end in ends} <= changed
    assert all(name.startswith(last) and value.shape[1:] == before[name][1:]
               for name, value in model.state_dict().items() if name in changed)
    model.eval()(torch.rand(1, 3, 64, 64))
    assert list(tensors(model.train()(torch.rand(2, 3, 64, 64))))


@pytest.mark.parametrize(("yolo", "imgsz", "said"), [
    (lambda: "yolo11n.pt", 640, "got str, wanted a YOLO with a PyTorch network"),
    (lambda: YOLO("yolo11n.yaml").model, 640, "got DetectionModel, wanted a YOLO"),
    (lambda: YOLO("yolo11n.yaml"), 100, "imgsz: got 100, wanted a side, or height and width, that 32 divides"),
    (lambda: YOLO("yolo11n.yaml"), 0, "imgsz: got 0"), (lambda: YOLO("yolo11n.yaml"), (64, 64, 3), "imgsz: got")])
def test_what_can_not_be_cut_is_refused(yolo: Any, imgsz: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        prune(yolo(), imgsz, macs=0.5)


def test_files_that_are_not_there() -> None:
    with pytest.raises(RequestError, match=r"load: none\.pt: no such file"):
        load("none.pt")


def test_rt_detr_too() -> None:
    slim = prune(RTDETR("rtdetr-l.yaml"), imgsz=64, macs=0.7)
    assert slim.task_map["detect"]["trainer"].__name__ == "SlimRTDETRTrainer"
    assert slim.plan.budgets[0].share <= 0.7
