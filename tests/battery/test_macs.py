"""Multiply-adds of one network of each family of torchvision and timm, against torch's own counter.

On the meta device: nothing is computed, so that networks of any size take part at their usual size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import torchslim
from battery.networks import CONVOLUTIONAL, HYBRID, SIDES
from helpers import count, in_turn
from matrix.measure import build
from matrix.networks import DETECTION, FLOW, NETWORKS, Network
from torchslim.store.loading import default_input


@contextmanager
def uninitialised() -> Iterator[None]:
    """Layers built inside hold arbitrary numbers, whose memory is never touched: even the largest cost nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in vars(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *_args, **_kwargs: tensor)
        yield


def counted(model: nn.Module, inputs: Any) -> int:
    model.requires_grad_(False)  # the counter trips over parameters that modules get as arguments
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def one_of_each_other_family() -> list[Network]:
    """The first network of each family that no other test of this folder counts; `benchmarks/coverage.py` has all.

    A family is the letters that names start with. Sequencer's LSTMs run as hundreds of products, which takes long.
    """
    families: dict[str, Network] = {}
    for network in NETWORKS:
        if network.section not in (DETECTION, FLOW):
            families.setdefault(family(network.name), network)
    elsewhere = [*(CONVOLUTIONAL + HYBRID).split(), *(f"torchvision:{name}" for name in SIDES), "timm:sequencer"]
    return [network for name, network in families.items() if name not in set(map(family, elsewhere))]


def family(name: str) -> str:
    return re.split(r"[\d_]", name)[0]


OTHERS = one_of_each_other_family()


@pytest.mark.parametrize("network", in_turn(OTHERS, OTHERS[::6]), ids=lambda n: n.name)
def test_macs_and_parameters(network: Network) -> None:
    with uninitialised():
        model = build(network).to("meta").eval()
    inputs = torch.empty(2, *(network.size or default_input(network.name)), device="meta")
    profile = torchslim.profile(model, inputs)
    assert profile.unknown == ()
    assert profile.macs == counted(model, (inputs,)) > 0
    assert profile.params == count(model)


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "keypointrcnn_resnet50_fpn"])
def test_macs_of_detectors(name: str) -> None:
    """They look at their data, and run for real."""
    network = next(network for network in NETWORKS if network.name == f"torchvision:{name}")
    small = {} if "ssd" in network.name else {"min_size": 96, "max_size": 96}
    model = torchslim.create_model(network.name, **{**network.options, **small}).eval()
    images = [torch.rand(3, 96, 96)]
    profile = torchslim.profile(model, images)
    assert profile.unknown == ()
    assert profile.macs == counted(model, (images,)) > 0


def test_these_are_all_of_torchvision_and_more_than_sixty_families() -> None:
    here = {name: library for library, _, name in (network.name.partition(":") for network in NETWORKS)}
    transformers = {name for name in torchvision.models.list_models() if name.startswith(("vit_", "swin", "mvit"))}
    assert set(torchvision.models.list_models()) - transformers <= here.keys()
    assert sum(library == "timm" for library in here.values()) > 60
