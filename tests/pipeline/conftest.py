"""A small network in a file, settings for it, and one finished run that several tests look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from torchslim.pipeline.runner import PhaseEvent, run_slim
from torchslim.pipeline.settings import Settings

NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(width, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.second, self.norm2 = nn.Conv2d(24, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.second(torch.relu(self.norm1(self.first(x))))))

def tiny(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                         Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

def plain(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny layers gain nothing from threads, and lose much on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the networks."""
    path = tmp_path_factory.mktemp("network") / "networks.py"
    path.write_text(NET)
    return path


Ask = Callable[..., Settings]


@pytest.fixture(scope="session")
def ask(network: Path) -> Ask:
    """Settings of a run of a few seconds."""

    def settings(out: Path, **changes: Any) -> Settings:
        epoch_settings = {"baseline_epochs": 4, "sparsify_epochs": 3, "finetune_epochs": 3}
        return Settings(**{"model": f"{network}:tiny", "data": "digits", "macs": 0.4, "size": 8, "threads": 1,
                           "batch_size": 32, "round_to": 2, "export": False, **epoch_settings, "out": out, **changes})

    return settings


@pytest.fixture(scope="session")
def finished(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Any, list[PhaseEvent]]:
    """An undisturbed run, ONNX and all: its settings, its record, what was told on the way."""
    settings = ask(tmp_path_factory.mktemp("finished") / "run", export=True)
    events: list[PhaseEvent] = []
    return settings, run_slim(settings, events.append), events
