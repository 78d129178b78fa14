"""Parameters and MACs of every network: as published, by torch's own counter, by `profile`, and in the docstrings."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import torchslim as ts
from helpers import count, counted_macs, in_turn
from torchslim import zoo
from torchslim.store.loading import build, default_input
from zoo.figures import FIGURES, OTHER_SIZES, UNET_DEAD

COUNTS = [(spec, *figures) for spec, figures in {**FIGURES, **OTHER_SIZES}.items()]


@pytest.mark.parametrize(("spec", "size", "params", "macs"), in_turn(COUNTS, COUNTS[::2]))
def test_counts(spec: str, size: int, params: int, macs: int) -> None:
    picture = torch.empty(1, 3, size, size, device="meta")
    with torch.device("meta"):
        network = build(f"torchslim:{spec.partition('@')[0]}")
    assert count(network) == params
    assert counted_macs(network, picture) == macs
    profile = ts.profile(network, picture)
    assert (profile.params, profile.macs) == (params, macs)


def test_every_network_has_its_figures_at_its_usual_size() -> None:
    assert {spec.partition("?")[0] for spec in FIGURES} == set(zoo.NETWORKS)
    for spec, (size, *_) in FIGURES.items():
        assert default_input(f"torchslim:{spec}") == (3, size, size)


def test_docstrings_say_the_same_and_name_every_option() -> None:
    for name in zoo.NETWORKS:
        made = zoo.NETWORKS[name].build
        text = inspect.getdoc(made) or ""
        rows = re.findall(r"3x(\d+)x\1 +([\d,]+) +([\d,]+)", text)
        said = {tuple(int(number.replace(",", "")) for number in row) for row in rows}
        known = {**FIGURES, **OTHER_SIZES}.items()
        assert said == {figures for spec, figures in known if re.split(r"[?@]", spec)[0] == name}
        for option in inspect.signature(made).parameters:
            assert re.search(rf"\b{option}\b", text), option
        assert "Shape:" in text
        assert "Raises:" in text
        assert re.search(r"et al\. \d{4}", inspect.getdoc(inspect.getmodule(made)) or "")


def test_other_widths_are_torchvisions_too() -> None:
    for name, width_mult in (("mobilenet_v2", 0.35), ("mobilenet_v2", 1.4), ("mobilenet_v3_small", 0.75),
                             ("mobilenet_v3_large", 1.25)):
        with torch.device("meta"):
            ours = ts.create_model(f"torchslim:{name}", width=width_mult)
            theirs = ts.create_model(f"torchvision:{name}", width_mult=width_mult)
        assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


@pytest.mark.parametrize(("name", "dead"), UNET_DEAD.items())
def test_what_the_unet_never_runs(name: str, dead: int) -> None:
    rung = int(name) if name.isdigit() else name
    picture = torch.empty(1, 3, 256, 256, device="meta")
    with torch.device("meta"):
        full, lean = zoo.unet(rung=rung), zoo.unet(rung=rung, dead=False)
    assert ts.profile(full, picture).dead_params == dead
    assert ts.profile(lean, picture).dead_params == 0
    assert count(full) - count(lean) == dead
    assert counted_macs(full, picture) == counted_macs(lean, picture)


def test_every_network_is_a_function_of_the_package() -> None:
    assert set(zoo.NETWORKS) <= set(zoo.__all__)
    assert all(hasattr(zoo, name) for name in zoo.__all__)
