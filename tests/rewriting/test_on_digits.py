"""On real pictures: rewritten from its own weights a trained network does better than from fresh ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lighten as benchmark
from helpers import in_turn
from torchslim.rewriting import lighten_with_report
from torchslim.train import Data, evaluate, fit, load_data


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Data, list[Tensor]]:
    torch.manual_seed(0)
    data, model = load_data("digits", size=16), benchmark.network()
    fit(model, data, epochs=3)
    return model, data, [torch.stack([data.train[i][0] for i in range(64 * n, 64 * n + 64)]) for n in range(3)]


@pytest.mark.parametrize(("rule", "least"), in_turn(
    [("asymmetric:32", 0.4), ("lowrank:0.5", 0.4), ("separable", 0.0)], [("asymmetric:32", 0.4)]))
def test_old_weights_beat_fresh_ones_and_data_beats_both(
        rule: str, least: float, trained: tuple[nn.Module, Data, list[Tensor]]) -> None:
    model, data, batches = trained
    before = evaluate(model, data)
    assert before > 0.9
    held_out = [torch.stack([data.test[i][0] for i in range(len(data.test))])]  # type: ignore[arg-type]
    found = [lighten_with_report(model, rule, batches[0][:1], **way)
             for way in ({"fresh": True}, {}, {"data": batches})]
    fresh, fitted, on_data = (evaluate(light.model, data) for light in found)
    assert fresh < 0.2
    assert max(fresh, least) <= fitted <= on_data
    assert on_data > before - 0.15
    errors = [benchmark.error(model, light, held_out) for light in found]
    assert errors == sorted(errors, reverse=True)
