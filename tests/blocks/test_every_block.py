"""What every block must do: its shapes and costs, training, half precision, compilation, export, and being cut."""

from __future__ import annotations

import inspect
import math
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from blocks.catalogue import CASES, Case
from helpers import check_training, count, counted_macs, oracle_error, random_statistics
from torchslim import blocks

CLASSES = [name for name in blocks.__all__ if name[0].isupper()]
# One form of each class, and those whose forward pass takes another way through it.
OTHER_WAYS = ("AsymmetricPair, in groups", "Fire, bypassed", "GroupedConv, shuffled", "InvertedResidual, added",
              "SEBottleneck, identity", "ShuffleUnitV1, added", "ShuffleUnitV2, split", "SqueezeExcite, linear")
WAYS = {name: case for name, case in CASES.items() if name in CLASSES or name in OTHER_WAYS}
every_way = pytest.mark.parametrize("case", WAYS.values(), ids=WAYS)
# The exporter's own tests have the operations; these have those of blocks that no plain network has.
EXPORTED = ("PartialConv", "ShuffleUnitV2, split", "SqueezeExcite, linear", "StarBlock")


def picture(m: int = 16, h: int = 8, w: int = 8) -> Tensor:
    return torch.randn(2, m, h, w)


def said_shape(case: Case, m: int, n: int, h: int, w: int) -> tuple[int, ...]:
    """What the docstring says that comes out, its formulas computed."""
    made = case.make
    (result,) = re.findall(r"Shape:\n +\(.*?\) -> \((.*)\)", inspect.getdoc(made) or "")
    given = inspect.signature(made).bind(**case.options(m, case.width(m, n)))
    given.apply_defaults()
    known = {"B": 2, "C": m, "H": h, "W": w, "ceil": math.ceil, **given.arguments}
    return tuple(eval(f"[{result}]", {}, known))


def test_the_catalogue_has_every_block() -> None:
    tested = {case.make.__name__ for case in CASES.values()}
    assert tested | {"ChannelSplit", "LinearBottleneck"} == set(CLASSES)


@pytest.mark.parametrize("name", [name for name in CASES if name in CLASSES])
def test_shapes_of_the_docstring_and_costs_in_closed_form(name: str) -> None:
    for case in (case for case in CASES.values() if case.make.__name__ == name):
        for h, w in ((8, 8), (9, 12)):
            assert tuple(case.built()(picture(16, h, w)).shape) == said_shape(case, 16, 32, h, w)
        for m, n, size in ((16, 32, 8), (64, 128, 56)):
            with torch.device("meta"):
                block = case.built(m, n)
            cost = case.cost(m, n, size)
            assert count(block) == cost.params
            assert counted_macs(block, torch.empty(1, m, size, size, device="meta")) == cost.macs


def test_docstrings_name_options_and_paper() -> None:
    for name in blocks.__all__:
        made = getattr(blocks, name)
        text = inspect.getdoc(made) or ""
        assert "Shape:" in text, name
        assert re.search(r"et al\. \d{4}|and \w+ \d{4}|`channel_\w+` as a layer", text), name
        for option in set(inspect.signature(made).parameters) - {"self", "x"}:
            assert re.search(rf"\b{option}\b", text), (name, option)


@every_way
def test_every_parameter_learns_and_channels_last_stays_and_half_precision_works(case: Case) -> None:
    block, x = case.built(), picture().requires_grad_()
    before = x.detach().clone()
    assert check_training(block, x) == {name for name, _ in block.named_parameters()}
    assert x.grad is not None
    assert torch.equal(x, before)
    block = case.built().to(memory_format=torch.channels_last)
    x = picture().to(memory_format=torch.channels_last)
    y = block(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, block(x.contiguous()), atol=1e-5)
    half = block.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(half).all()


@every_way
def test_compiles_as_one_graph_and_scripts(case: Case) -> None:
    torch.compiler.reset()
    block, x = case.built().eval(), picture()
    assert torch.equal(torch.compile(block, backend="eager", fullgraph=True)(x), block(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripting deprecated
        scripted = torch.jit.script(block)
    assert torch.allclose(scripted(x), block(x), atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform == "win32", reason="needs a compiler")
def test_compiles_to_code() -> None:
    torch.compiler.reset()
    block = CASES["ShuffleUnitV2, split"].built().eval()
    x = picture()
    with torch.no_grad():
        assert torch.allclose(torch.compile(block, fullgraph=True)(x), block(x), atol=1e-5)


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_to_onnx(name: str, tmp_path: Path) -> None:
    block = random_statistics(CASES[name].built()).eval()
    assert ts.export(block, picture(), tmp_path / "block.onnx").error < 1e-4


@every_way
def test_is_cut_and_proven(case: Case) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential()
    net.add_module("stem", blocks.ConvNormAct(3, 32))
    net.add_module("block", case.built(32, 64))
    net.add_module("last", nn.Conv2d(case.width(32, 64), 12, 1))
    random_statistics(net).eval()
    plan = ts.plan(net, x, macs=0.5)
    slim = ts.apply(net, plan)
    assert ts.verify(net, slim, plan, x) < 1e-9
    assert oracle_error(net, slim, plan, x) < 1e-9
    assert counted_macs(slim, x) <= 0.5 * counted_macs(net, x)
    weights = {name for name, tensor in net.block.named_parameters() if tensor.dim() > 1}
    assert {name for name in weights if f"block.{name}" in plan.kept} == weights
    assert check_training(slim, x) == check_training(net, x)
