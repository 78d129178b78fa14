"""Detectors in the form that users call them: cut unhinted through backbone, pyramid, proposals and heads.

The proof covers the heads' raw outputs, layer by layer, and the final detections, of which there must be some.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchslim
from helpers import count, in_turn, random_statistics
from torchslim.proof.verification import differences

# name: the layers that predict classes, boxes and the rest; how many channels they keep
HEADS = {
    "fasterrcnn_resnet50_fpn": {"rpn.head.cls_logits": 3, "rpn.head.bbox_pred": 12,
                                "roi_heads.box_predictor.cls_score": 5, "roi_heads.box_predictor.bbox_pred": 20},
    "retinanet_resnet50_fpn": {"head.classification_head.cls_logits": 45, "head.regression_head.bbox_reg": 36},
    "fcos_resnet50_fpn": {"head.classification_head.cls_logits": 5, "head.regression_head.bbox_reg": 4,
                          "head.regression_head.bbox_ctrness": 1},
    "ssdlite320_mobilenet_v3_large": {"head.classification_head.module_list.0.1": 30,
                                      "head.regression_head.module_list.0.1": 24},
}


def build(name: str) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    size = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
    model = torchslim.create_model(name, num_classes=5, weights_backbone=None, **size)
    random_statistics(model)
    loud = 2e-4 if name.startswith("fasterrcnn") else 1.0  # a deep pyramid without norms: its maps are in thousands
    with torch.no_grad():
        for head in HEADS[name]:  # as built they are near zero: no detections, or all of one score
            layer: Any = model.get_submodule(head)
            size = loud * (0.05 if "bbox" in head or "regression" in head else 1.0)  # boxes stay in the picture
            layer.weight.normal_(0, size / layer.weight[0].numel() ** 0.5)
            layer.bias.normal_(0, 0.5 * size / loud)
    return model.eval(), [torch.rand(3, 96, 128), torch.rand(3, 120, 96)]


def counted(model: nn.Module, pictures: list[Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pictures)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", in_turn(HEADS, ("ssdlite320_mobilenet_v3_large",)))
def test_a_detector_is_cut_unhinted_and_proven_to_its_detections(name: str) -> None:
    model, pictures = build(name)
    plan = torchslim.plan(model, pictures, macs=0.6, importance="random")
    slim = torchslim.apply(model, plan)
    assert plan.budgets[0].met <= plan.budgets[0].asked
    if not name.startswith("fasterrcnn"):  # whose second stage costs by the proposals, which the cut changes
        assert plan.predicted["macs"] == torchslim.profile(slim, pictures).macs == counted(slim, pictures)
    assert plan.predicted["params"] == count(slim)

    found = differences(model, slim, plan, pictures)
    compared = {difference.where for difference in found}
    assert max(difference.error for difference in found) < 1e-9
    assert {*HEADS[name], "the output"} <= compared
    for head, channels in HEADS[name].items():  # classes, boxes and anchors are no one's to cut
        assert slim.get_submodule(head).weight.shape[0] == channels
        assert slim.get_submodule(head).weight.shape[1] <= model.get_submodule(head).weight.shape[1]

    with torch.no_grad():
        before, after = model(pictures), slim(pictures)
    assert len(before) == len(after) == 2
    assert all(len(detections["boxes"]) for detections in before)
    assert [set(detections) for detections in after] == [set(detections) for detections in before]
