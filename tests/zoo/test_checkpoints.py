"""Weights of named models from files: what training scripts write is found, what does not fit is named."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import torchslim
from helpers import Call
from torchslim.errors import RequestError, TorchslimWarning
from torchslim.store.header import read_header
from torchslim.store.loading import build
from torchslim.zoo.sources import resolve

State = dict[str, Tensor]
NETWORK = "mobilenet_v1_cifar"
IMAGE = torch.rand(1, 3, 32, 32)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network whose weights are to be found again, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    model = torchslim.create_model(NETWORK, width=0.25, num_classes=7).eval()
    for buffer in model.buffers():
        buffer.add_(1)
    return model


def module_before(state: State) -> State:
    return {f"module.{name}": value for name, value in state.items()}


FILES: dict[str, Callable[[nn.Module], Any]] = {
    "state dict": lambda model: model.state_dict(),
    "data parallel": lambda model: nn.DataParallel(model).state_dict(),
    "torchvision's script": lambda model: {
        "model": model.state_dict(), "optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(),
        "lr_scheduler": {}, "epoch": 9, "args": argparse.Namespace(lr=0.1, output=None)},
    "timm's script": lambda model: {
        "epoch": 9, "arch": NETWORK, "state_dict": module_before(model.state_dict()),
        "optimizer": {}, "version": 2, "args": argparse.Namespace(lr=0.1), "metric": np.float64(71.5)},
    "averaged": lambda model: {"epoch": 1, "model_ema": AveragedModel(model).state_dict()},
    "ema alone": lambda model: {"ema": {"module": model.state_dict()}},
    "compiled": lambda model: {"model_state_dict": {f"_orig_mod.{name}": v for name, v in model.state_dict().items()}},
    "lightning": lambda model: {"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}},
    "without counts of batches": lambda model: {
        name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")},
    "half precision": lambda model: {name: v.half() if v.is_floating_point() else v
                                     for name, v in model.state_dict().items()},
}


@pytest.mark.parametrize("kind", FILES)
def test_what_training_scripts_write_is_found(kind: str, trained: nn.Module) -> None:
    torch.save(FILES[kind](trained), "weights.pth")
    found = build(f"{NETWORK}?width=0.25&num_classes=7&checkpoint=weights.pth").eval()
    tolerance = 1e-2 if kind == "half precision" else 0
    for name, value in trained.state_dict().items():
        if kind != "without counts of batches" or not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found.state_dict()[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", ["torchvision:resnet18?num_classes=4", "timm:test_resnet?num_classes=4",
                                   "net.py:net", "torch.nn:Conv2d?in_channels=3&out_channels=4&kernel_size=1"])
def test_every_kind_of_name_takes_weights(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\ndef net():\n    return nn.Conv2d(3, 4, 1)\n")
    state = build(model).state_dict()
    save_file(state, "weights.safetensors")
    found = build(f"{model}{'&' if '?' in model else '?'}checkpoint={tmp_path}/weights.safetensors").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_weights_are_given_once() -> None:
    for model in (f"{NETWORK}?checkpoint=a.pth", "torchvision:resnet18?weights=DEFAULT"):
        with pytest.raises(RequestError, match=r"--weights b.pth: .* has weights already"):
            resolve(model).with_weights("b.pth", new_head=False)


def test_the_keyword_of_create_model_is_the_same(trained: nn.Module) -> None:
    torch.save(trained.state_dict(), "weights.pth")
    found = torchslim.create_model(NETWORK, checkpoint=Path("weights.pth"), width=0.25, num_classes=7).eval()
    assert torch.equal(found(IMAGE), trained(IMAGE))
    with pytest.raises(RequestError, match=r"checkpoint='weights.pth' and weights='DEFAULT' both say"):
        torchslim.create_model("mobilenet_v2", weights="DEFAULT", checkpoint="weights.pth")


def test_a_factory_with_such_an_option_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("from torch import nn\ndef net(checkpoint):\n    return nn.Conv2d(checkpoint, 4, 1)\n")
    assert isinstance(found := build("own.py:net?checkpoint=5"), nn.Conv2d)
    assert found.in_channels == 5


def test_what_does_not_fit_is_counted_and_named(trained: nn.Module) -> None:
    state = dict(trained.state_dict())
    names = [name for name in state if name.endswith("weight")]
    removed, wide = names[:2], names[-1]
    state[wide] = torch.zeros(1000, *state[wide].shape[1:])
    for name in removed:
        state[f"old.{name}"] = state.pop(name)
    torch.save(state, "weights.pth")
    with pytest.raises(RequestError) as caught:
        build(f"{NETWORK}?width=0.25&num_classes=7&checkpoint=weights.pth")
    assert str(caught.value).startswith(
        f"torchslim:{NETWORK}?width=0.25&num_classes=7&checkpoint=weights.pth: weights.pth does not fit: of its "
        f"tensors 2 missing: {removed[0]}, {removed[1]}; 2 unexpected: old.{removed[0]}, old.{removed[1]}; 1 of "
        f"another shape: {wide} (1000x256 in the file, 7x256 in the model); give the architecture and the options ")


@pytest.mark.parametrize(("model", "head"), [
    ("torchvision:squeezenet1_1", "classifier.1.weight, classifier.1.bias"),
    pytest.param("torchvision:ssdlite320_mobilenet_v3_large", "head.classification_head.module_list.0.1.weight, ",
                 marks=pytest.mark.nightly),
    ("net.py:net", "last.weight, last.bias"),
])
def test_a_head_of_another_size_stays_random_on_request_and_nothing_else(
        model: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\nfrom collections import OrderedDict\ndef net(num_classes):\n    return nn.Sequential("
        "OrderedDict(first=nn.Conv2d(3, 4, 1), pool=nn.AdaptiveAvgPool2d(1), last=nn.Conv2d(4, num_classes, 1)))\n")
    trained = build(f"{model}?num_classes=5").state_dict()
    torch.save(trained, "weights.pth")
    with pytest.raises(RequestError, match=r"of another shape: .*; for another number of classes, new_head=True"):
        build(f"{model}?num_classes=3&checkpoint=weights.pth")
    with pytest.warns(TorchslimWarning, match=f"the head stays random, weights.pth has none of its size: {head}"):
        found = build(f"{model}?num_classes=3&checkpoint=weights.pth&new_head=True").state_dict()
    same_shape = [name for name, value in found.items() if value.shape == trained[name].shape]
    assert len(same_shape) < len(found)
    assert all(torch.equal(found[name], trained[name]) for name in same_shape)
    trained.pop(same_shape[0])
    torch.save(trained, "weights.pth")
    with pytest.raises(RequestError, match=f"of its tensors 1 missing: {same_shape[0]}; give"):
        build(f"{model}?num_classes=3&checkpoint=weights.pth&new_head=True")
    with pytest.raises(RequestError, match="new_head=True needs a file of weights and the number of classes"):
        build(f"{model}?num_classes=3&new_head=True")


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.ones(1)}, "extra": Code()}, "code.pth")
    torch.save(nn.Conv2d(3, 4, 1), "whole.pth")
    for path, word in (("code.pth", "getattr"), ("whole.pth", "torch.nn.modules.conv.Conv2d")):
        with pytest.raises(RequestError, match=rf"^{path}: holds code \({word}\), which was not run; where it"):
            build(f"torch.nn:Conv2d?in_channels=3&out_channels=4&kernel_size=1&checkpoint={path}")
    assert not (tmp_path / "executed").exists()


def test_a_slim_file_keeps_the_name_and_needs_the_weights_no_more(trained: nn.Module, call: Call) -> None:
    torch.save({"model": trained.state_dict()}, "weights.pth")
    source = f"torchslim:{NETWORK}?width=0.25&num_classes=7&checkpoint=weights.pth"
    status, out, err = call("prune", source, "--macs", "0.5", "--out", "slim.safetensors", "--json")
    assert (status, err) == (0, "")  # no remark on random weights
    assert read_header("slim.safetensors").source == source
    (plan,) = read_header("slim.safetensors").steps
    expected = torchslim.apply(trained, plan)
    Path("weights.pth").unlink()
    assert torch.equal(torchslim.load("slim.safetensors")(IMAGE), expected(IMAGE))
    status, out, err = call("profile", "slim.safetensors", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["params"] == sum(p.numel() for p in expected.parameters())
    status, _, err = call("profile", f"{NETWORK}?width=0.25&num_classes=7&checkpoint=slim.safetensors")
    assert status == 2
    assert "slim.safetensors: is a saved slim model, which has its architecture; give it as MODEL by itself" in err
