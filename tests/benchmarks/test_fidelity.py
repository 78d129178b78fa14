"""The table of what cuts leave of a trained network, and how the peer is brought to a share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fidelity


def test_the_table_has_a_row_for_each_way_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity.metadata, "version", lambda name: "1.2.3")  # of packages that need not be here
    rows = [{"way": "obs", "share": 0.8, "macs": 0.799, "cut": 0.25, "after": 0.5, "seconds": 1.0},
            {"way": "l2", "share": 0.9, "macs": 0.9, "cut": 0.104, "after": 1.0, "seconds": 1.0}]
    lines = fidelity.page(rows).splitlines()
    assert lines[-4] == "| | 90% of the MACs | 80% of the MACs |"
    assert lines[-2:] == ["| obs | - | 25, 50 |", "| l2 | 10, 100 | - |"]


def test_recalibrated_norms_have_the_statistics_of_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.randn(6, 3, 5, 5) * 3 + 2
    monkeypatch.setattr(fidelity, "seen", lambda: [pictures[:4], pictures[4:]])
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    [norm, _] = fidelity.recalibrated(model)
    torch.testing.assert_close(norm.running_mean, pictures.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, pictures.var((0, 2, 3)))
    assert not model[0].running_mean.any()
