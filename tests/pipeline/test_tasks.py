"""The whole job for every task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import torchslim
from helpers import Call
from torchslim.train import load_data, metrics

NETS = """
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import Subset
from torchvision.models.detection import FasterRCNN, KeypointRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from torchslim.train import load_data

def block(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

def classifier(num_classes):
    return nn.Sequential(block(3, 16, 2), block(16, 16, 2), block(16, 32, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(128, num_classes))

class UNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.down, self.deep, self.up = block(3, 16), block(16, 32, 2), nn.Upsample(scale_factor=2)
        self.join, self.head = block(48, 16), nn.Conv2d(16, num_classes, 1)

    def forward(self, x):
        high = self.down(x)
        return {"out": self.head(self.join(torch.cat([high, self.up(self.deep(high))], 1)))}

def backbone():
    made = nn.Sequential(block(3, 16, 2), block(16, 24, 2), block(24, 32, 2))
    made.out_channels = 32
    return made

def options():
    return dict(min_size=64, max_size=64, rpn_anchor_generator=AnchorGenerator(((12, 24),), ((1.0,),)),
                box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2), box_head=TwoMLPHead(32 * 9, 32),
                rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_train=20, rpn_pre_nms_top_n_test=50,
                rpn_post_nms_top_n_test=20)

def detector(num_classes):
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    return FasterRCNN(backbone(), box_predictor=FastRCNNPredictor(32, num_classes), **options())

def pointer(num_classes, num_keypoints):
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
    return KeypointRCNN(backbone(), box_predictor=FastRCNNPredictor(32, num_classes),
                        keypoint_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
                        keypoint_head=KeypointRCNNHeads(32, (16, 16)),
                        keypoint_predictor=KeypointRCNNPredictor(16, num_keypoints), **options())

def few(task, size=64, seed=0):
    data = load_data("shapes:" + task, size=size, seed=seed)
    return replace(data, train=Subset(data.train, range(24)), test=Subset(data.test, range(12)))

def multilabel(size): return few("multilabel", size)
def segmentation(size): return few("segmentation", size)
def detection(size): return few("detection", size)
def keypoints(size): return few("keypoints", size)
def regression(size): return few("regression", size)
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "nets.py"
    path.write_text(NETS)
    return path


@pytest.mark.parametrize(("task", "model", "names"), [
    ("multilabel", "classifier", ["F1", "accuracy"]), ("segmentation", "UNet", ["mIoU", "accuracy"]),
    ("detection", "detector", ["mAP", "mAP50"]), ("keypoints", "pointer", ["PCK", "mAP", "mAP50"]),
    ("regression", "classifier", ["R2", "MAE"]),
])
def test_the_whole_job(call: Call, nets: Path, tmp_path: Path, task: str, model: str, names: list[str]) -> None:
    out, size = tmp_path / "run", 64 if task in ("detection", "keypoints") else 32
    asked = ("slim", f"{nets}:{model}", "--data", f"{nets}:{task}", "--macs", "0.6", "--out", out, "--epochs", "1",
             "--batch-size", "8", "--size", size, "--threads", "1", "--round-to", "2", "--no-export",
             "--importance", "l2" if task in ("detection", "keypoints") else "auto")
    status, printed, err = call(*asked, "--json")
    assert status in (0, 1), err  # an epoch may teach nothing, which is said
    record = json.loads(printed)
    assert bool(status) == record["useless"]
    assert list(record["after"]["metrics"]) == names
    assert record["after"]["macs"] <= 0.6 * record["before"]["macs"]
    assert record["proof_error"] < 1e-9
    assert "baseline: epoch 1/1, loss" in err
    assert f", {names[0]} " in err
    data = load_data(f"{nets}:{task}", size=size)
    slim = torchslim.load(out / "slim.safetensors", trust_source=True)
    assert metrics(slim, data) == record["after"]["metrics"]
    assert call(*asked, "--json")[1] == printed
    assert "</html>" in (out / "report.html").read_text()


def test_a_network_that_cannot_be_exported_ends_in_a_report(call: Call, nets: Path, tmp_path: Path) -> None:
    asked = ("slim", f"{nets}:detector", "--data", f"{nets}:detection", "--macs", "0.6", "--out", tmp_path, "--size",
             64, "--baseline-epochs", 0, "--finetune-epochs", 0, "--threads", "1", "--importance", "l2",
             "--no-compensate")
    for _ in range(2):
        _, printed, _ = call(*asked)
        assert "ONNX: not written: " in printed
        assert not list(tmp_path.glob("*.onnx"))
        assert "No ONNX files were written" in (tmp_path / "report.html").read_text()


@pytest.mark.nightly
@pytest.mark.parametrize("model", ["torchvision:ssdlite320_mobilenet_v3_large",
                                   "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn?min_size=64&max_size=64"])
def test_detectors_of_torchvision(call: Call, nets: Path, tmp_path: Path, model: str) -> None:
    status, printed, err = call("slim", model, "--data", f"{nets}:detection", "--macs", "0.5", "--out", tmp_path,
                                "--epochs", "1", "--size", "64", "--batch-size", "4", "--threads", "1", "--no-export",
                                "--json")
    assert status in (0, 1), err
    record = json.loads(printed)
    assert record["after"]["macs"] <= 0.5 * record["before"]["macs"]
    assert record["proof_error"] < 1e-9
