"""The presets cut what their table says, named by batch-norm layer; and only that."""

from __future__ import annotations

import re

import pytest
import torch

import torchslim
from helpers import random_statistics
from torchslim.errors import RequestError
from torchslim.presets import PRESETS

RESNET = r"layer\d\.\d\."
BASIC = {"inner": RESNET + r"bn1", "all": RESNET + r"(bn[12]|downsample\.1)|bn1"}
BOTTLENECK = {"inner": RESNET + r"bn[12]", "all": RESNET + r"(bn[123]|downsample\.1)|bn1"}
# network: strategy: the batch norms (by full match) whose channels the strategy cuts
NORMS = {
    "resnet18": BASIC,
    "resnet50": BOTTLENECK,
    "resnetv2_18": {"inner": r"stages\.\d\.blocks\.\d\.norm2", "all": r"stages\.\d\.blocks\.\d\.norm[12]|norm"},
    "seresnet18": BASIC,
    "seresnet50": BOTTLENECK,
    "resnext50_32x4d": BOTTLENECK,
    "mobilenet_v2": {"inner": r"features\.([2-9]|1\d)\.conv\.[01]\.1",
                     "all": r"features\.([2-9]|1[0-7])\.conv\.([01]\.1|3)"},
    "shufflenet_v2_x1_0": {"inner": r"stage\d\.0\.branch2\.[14]"},
    "densenet121": {"inner": r"features\.denseblock\d\.denselayer\d+\.norm2",
                    "all": r"features\.(denseblock\d\.denselayer\d+\.norm[12]|norm[05]|transition\d\.norm)"},
    "darknet53": {"inner": r"stages\.\d\.blocks\.\d\.conv1\.bn",
                 "all": r"stages\.\d\.(blocks\.\d\.conv[12]|conv_down)\.bn"},
    "legacy_xception": {"inner": r"block([4-9]|1[01])\.rep\.[25]",
                        "all": r"block([4-9]|1[01])\.rep\.[258]|block3\.(rep\.5|skipbn)"},
    "xception41": {"inner": r"blocks\.([3-9]|10)\.stack\.(conv[12]\.bn_pw|conv[23]\.bn_dw)",
                   "all": r"blocks\.([3-9]|10)\.stack\..*|blocks\.2\.(stack\.conv3|shortcut)\.bn(_pw)?|"
                          r"blocks\.11\.stack\.conv1\.bn_dw"},
}
CASES = [(network, strategy) for network, strategies in NORMS.items() for strategy in strategies]


def test_every_preset_has_its_norms_named_here() -> None:
    assert {n: set(s) for n, s in PRESETS.items() if n != "fasterrcnn_resnet50_fpn"} == {
        n: set(s) for n, s in NORMS.items()}


@pytest.mark.parametrize(("network", "strategy"), CASES)
def test_a_preset_cuts_the_norms_of_its_table(network: str, strategy: str) -> None:
    model = random_statistics(torchslim.create_model(network, num_classes=10)).eval()
    inputs = torch.randn(1, 3, 64, 64)
    scope = dict.fromkeys(["*"], 0.5)
    slim, plan = torchslim.prune(model, inputs, scope=scope, importance="random",
                                 only=torchslim.preset(network, strategy))
    cut = {name.rpartition(".")[0] for name in plan.kept if name.endswith("running_mean")}
    norms = {name.rpartition(".")[0] for name in model.state_dict() if name.endswith("running_mean")}
    assert cut == {name for name in norms if re.fullmatch(NORMS[network][strategy], name)}
    assert torchslim.verify(model, slim, plan, inputs) < 1e-10


def test_an_unknown_network_or_strategy_is_named() -> None:
    with pytest.raises(RequestError, match=r"no presets for 'lenet'; there are some for .*resnet50"):
        torchslim.preset("lenet", "inner")
    with pytest.raises(RequestError, match="shufflenet_v2_x1_0 has no strategy 'all'; wanted 'inner'"):
        torchslim.preset("torchvision:shufflenet_v2_x1_0", "all")
