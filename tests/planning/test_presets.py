"""The presets, and both settings of `shortcuts=`, cut what their tables say, named by batch norm; and only that.

Every list below is written out from the networks' papers and names alone. `cut` are the norms right behind the
convolutions that a strategy is about; `follow` are norms that see the same channels further on, and get narrower too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import torchslim
from helpers import check_training, in_turn, random_statistics
from torchslim.errors import RequestError
from torchslim.planning.presets import PRESETS
from torchslim.surgery.plans import Plan

SHARE = 0.6


@dataclass(frozen=True)
class Cut:
    """What a strategy cuts: norms behind the cut convolutions, norms that follow, norms that keep the same channels."""

    cut: tuple[str, ...]
    follow: tuple[str, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    scope: tuple[tuple[str, float], ...] = (("*", SHARE),)


def blocks(counts: Iterable[int], *norms: str, head: str = "layer{}.{}.", first: int = 1) -> tuple[str, ...]:
    """Names of norms in every block of every stage: `layer1.0.bn1`, `layer1.1.bn1`, ..."""
    return tuple(head.format(stage, block) + norm for stage, count in enumerate(counts, first)
                 for block in range(count) for norm in norms)


# ResNet: a stage's blocks add up, from the layer that begins it on. The stem's norm is on the first stage's shortcut
# where that has no convolution of its own.
def resnet18() -> dict[str, Cut]:
    sums = [["bn1"], ["layer2.0.downsample.1"], ["layer3.0.downsample.1"], ["layer4.0.downsample.1"]]
    tied = tuple((*start, f"layer{stage}.0.bn2", f"layer{stage}.1.bn2") for stage, start in enumerate(sums, 1))
    return {"inner": Cut(blocks((2, 2, 2, 2), "bn1")),
            "all": Cut(blocks((2, 2, 2, 2), "bn1", "bn2"), sum((tuple(start) for start in sums), ()), tied)}


def resnet50() -> dict[str, Cut]:
    counts = (3, 4, 6, 3)
    tied = tuple((f"layer{stage}.0.downsample.1", *(f"layer{stage}.{block}.bn3" for block in range(count)))
                 for stage, count in enumerate(counts, 1))
    starts = ("bn1", *(names[0] for names in tied))
    return {"inner": Cut(blocks(counts, "bn1", "bn2")), "all": Cut(blocks(counts, "bn1", "bn2", "bn3"), starts, tied)}


# Pre-activation: bn1 of a block sees the sum before it, so the stages are shifted by one block, and the last norm sees
# the last sum.
def resnetv2_18() -> dict[str, Cut]:
    names = functools.partial(blocks, (2, 2, 2, 2), head="stages.{}.blocks.{}.", first=0)
    tied = (("stages.0.blocks.0.norm1", "stages.0.blocks.1.norm1", "stages.1.blocks.0.norm1"),
            ("stages.1.blocks.1.norm1", "stages.2.blocks.0.norm1"),
            ("stages.2.blocks.1.norm1", "stages.3.blocks.0.norm1"), ("stages.3.blocks.1.norm1", "norm"))
    return {"inner": Cut(names("norm2")), "all": Cut(names("norm1", "norm2"), ("norm",), tied)}


# The depthwise convolution's norm has the expansion's channels. Blocks 0 and 1 are spared, and the last 1x1.
def mobilenet_v2(body: str, last: str) -> dict[str, Cut]:
    inner = tuple(f"features.{block}.{body}.0.1" for block in range(2, 18))
    depthwise = tuple(f"features.{block}.{body}.1.1" for block in range(2, 18))
    pairs = tuple(zip(inner, depthwise, strict=True))
    shortcuts = ((2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13), (14, 15, 16), (17,))  # blocks of equal width
    sums = tuple(tuple(f"features.{block}.{body}.{last}" for block in stage) for stage in shortcuts)
    return {"inner": Cut(inner, depthwise, pairs), "all": Cut((*inner, *sum(sums, ())), depthwise, pairs + sums)}


# The right branch's first 1x1, and the 3x3 depthwise convolution behind it, of every unit.
def shufflenet() -> dict[str, Cut]:
    heads = [f"stage{stage}.{unit}.branch2." for stage, units in ((2, 4), (3, 8), (4, 4)) for unit in range(units)]
    return right_branches(heads, "1", "4")


def right_branches(heads: list[str], first: str, depthwise: str) -> dict[str, Cut]:
    pairs = tuple((head + first, head + depthwise) for head in heads)
    return {"inner": Cut(tuple(one for one, _ in pairs), tuple(other for _, other in pairs), pairs)}


# Every norm1 sees the input of its block and what all earlier layers of the block add to it; so do the transitions.
def densenet121() -> dict[str, Cut]:
    layers = [f"features.denseblock{block}.denselayer{layer}." for block, count in enumerate((6, 12, 24, 16), 1)
              for layer in range(1, count + 1)]
    ends = ("features.transition1.norm", "features.transition2.norm", "features.transition3.norm", "features.norm5")
    small = (("*.denselayer*.conv1", SHARE), ("*", 0.95))
    both = tuple(f"{layer}norm{n}" for layer in layers for n in (1, 2))
    return {"inner": Cut(tuple(f"{layer}norm2" for layer in layers)),
            "all": Cut(both, ("features.norm0", *ends), (), small)}


# Blocks 4 to 11 are the middle flow: its sums begin with block 3's last convolution and its shortcut.
def legacy_xception() -> dict[str, Cut]:
    middle = range(4, 12)
    inner = ("bn1", "block1.rep.1", "block2.rep.2", "block3.rep.2",
             *(f"block{b}.rep.{n}" for b in middle for n in (2, 5)), "block12.rep.2", "bn3", "bn4")
    thirds, before = tuple(f"block{b}.rep.8" for b in middle), ("block3.rep.5", "block3.skipbn")
    return {"inner": Cut(inner), "all": Cut(inner + thirds, before, (thirds + before,))}


# The same shape in timm's newer code, blocks 3 to 10 being the middle flow, with a norm behind each depthwise
# convolution: it has the channels that the layer before made.
def xception41() -> dict[str, Cut]:
    def stack(block: int, *norms: str) -> tuple[str, ...]:
        return tuple(f"blocks.{block}.stack.{norm}" for norm in norms)

    own = sum((stack(b, "conv1.bn_pw", "conv2.bn_pw") for b in range(13)), ("stem.0.bn", *stack(12, "conv3.bn_pw")))
    depthwise = sum((stack(b, "conv2.bn_dw", "conv3.bn_dw") for b in range(13)), ())
    thirds = sum((stack(b, "conv3.bn_pw") for b in range(3, 11)), ())
    before = (*stack(2, "conv3.bn_pw"), "blocks.2.shortcut.bn")
    after = sum((stack(b, "conv1.bn_dw") for b in range(3, 12)), ())
    sums = thirds + before + after
    return {"inner": Cut(own, depthwise), "all": Cut(own + thirds, depthwise + before + after, (sums,))}


def darknet53() -> dict[str, Cut]:
    counts = (1, 2, 8, 8, 4)
    names = functools.partial(blocks, counts, head="stages.{}.blocks.{}.", first=0)
    starts = tuple(f"stages.{stage}.conv_down.bn" for stage in range(5))
    tied = tuple((starts[stage], *(f"stages.{stage}.blocks.{block}.conv2.bn" for block in range(count)))
                 for stage, count in enumerate(counts))
    return {"inner": Cut(names("conv1.bn")), "all": Cut(names("conv1.bn", "conv2.bn"), starts, tied)}


def fasterrcnn() -> dict[str, Cut]:
    def body(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"backbone.body.{name}" for name in names)

    return {strategy: Cut(body(c.cut), body(c.follow), tuple(body(t) for t in c.tied))
            for strategy, c in resnet50().items()}


TABLE: dict[str, dict[str, Cut]] = {
    "resnet18": resnet18(), "resnet50": resnet50(), "resnetv2_18": resnetv2_18(), "seresnet18": resnet18(),
    "seresnet50": resnet50(), "resnext50_32x4d": resnet50(), "mobilenet_v2": mobilenet_v2("body", "2.1"),
    "shufflenet_v2_x1_0": shufflenet(), "densenet121": densenet121(), "legacy_xception": legacy_xception(),
    "torchvision:mobilenet_v2": mobilenet_v2("conv", "3"),
    "shufflenet_v2": right_branches([f"features.{unit}.right." for unit in range(2, 18)], "0.1", "1.1"),
    "xception41": xception41(), "darknet53": darknet53(), "fasterrcnn_resnet50_fpn": fasterrcnn(),
}

# What `shortcuts=False` cuts beyond the strategy "inner": layers that the strategies spare, whose channels one layer
# reads. (A shortcut of one layer alone, MobileNetV2's block 17 or its block 1, is none.)
FREE_TOO = {
    "mobilenet_v2": ("features.0.1", "features.1.body.0.1", "features.1.body.1.1", "features.17.body.2.1",
                     "features.18.1"),
    "torchvision:mobilenet_v2": ("features.0.1", "features.1.conv.0.1", "features.1.conv.2", "features.17.conv.3",
                                 "features.18.1"),
    "shufflenet_v2_x1_0": ("conv5.1",), "darknet53": ("stem.conv1.bn",), "shufflenet_v2": ("features.18.1",),
}


@functools.cache
def build(network: str) -> tuple[nn.Module, Any]:
    """A network with random statistics, and a small input; the detector's heads keep torchvision's quiet start."""
    torch.manual_seed(0)
    if network.startswith("fasterrcnn"):
        model = torchslim.create_model(network, num_classes=10, weights_backbone=None, min_size=64, max_size=96)
        random_statistics(model.get_submodule("backbone"))
        return model.eval(), [torch.rand(3, 64, 96)]
    return random_statistics(torchslim.create_model(network, num_classes=10)).eval(), torch.randn(1, 3, 64, 64)


def narrower(plan: Plan) -> set[str]:
    """The batch norms that a plan cuts, checked to be cut as a whole."""
    found = {name.rpartition(".")[0] for name in plan.kept if name.endswith(".running_mean")}
    for norm in found:
        assert plan.kept[f"{norm}.weight"] == plan.kept[f"{norm}.bias"] == plan.kept[f"{norm}.running_var"]
        assert plan.kept[f"{norm}.weight"] == plan.kept[f"{norm}.running_mean"]
    return found


def norms_of(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[0] for name in model.state_dict() if name.endswith(".running_mean")}


@functools.cache
def planned(network: str, strategy: str) -> Plan:
    model, inputs = build(network)
    return torchslim.plan(model, inputs, scope=dict(TABLE[network][strategy].scope), importance="random",
                          only=torchslim.preset(network, strategy))


def kept(plan: Plan, name: str, dim: int = 0) -> tuple[int, ...]:
    return plan.kept[name][dim]


def test_every_preset_has_its_norms_named_here() -> None:
    assert {network: set(rows) for network, rows in PRESETS.items()} == {
        network.rpartition(":")[2]: set(rows) for network, rows in TABLE.items()}


ROWS = [(network, strategy) for network, rows in TABLE.items() for strategy in rows]
SMALL = {"seresnet18", "mobilenet_v2", "shufflenet_v2"}


@pytest.mark.parametrize(("network", "strategy"), in_turn(ROWS, [row for row in ROWS if row[0] in SMALL]))
def test_a_preset_cuts_the_norms_of_its_table(network: str, strategy: str) -> None:
    (model, inputs), plan, row = build(network), planned(network, strategy), TABLE[network][strategy]
    assert set(row.cut) | set(row.follow) <= norms_of(model)
    assert set(row.cut).isdisjoint(row.follow)
    assert narrower(plan) == {*row.cut, *row.follow}
    for together in row.tied:
        assert len({kept(plan, f"{norm}.weight") for norm in together}) == 1, together
    shares = dict(row.scope)
    for norm in {*row.cut, *row.follow}:
        width = model.get_submodule(norm).weight.shape[0]
        assert min(shares.values()) <= len(kept(plan, f"{norm}.weight")) / width < 1, norm
    assert torchslim.verify(model, torchslim.apply(model, plan), plan, inputs) < 1e-10


SHORTCUTS = [(network, False) for network in TABLE] + [
    (network, True) for network in ("seresnet18", "mobilenet_v2", "shufflenet_v2", "densenet121")]


@pytest.mark.parametrize(("network", "shortcuts"), in_turn(
    SHORTCUTS, [case for case in SHORTCUTS if case[0] in SMALL]))
def test_both_settings_of_shortcuts_cut_all_that_they_may(network: str, shortcuts: bool) -> None:
    model, inputs = build(network)
    plan = torchslim.plan(model, inputs, scope={"*": SHARE}, importance="random", shortcuts=shortcuts)
    inner = TABLE[network]["inner"]
    free = {*inner.cut, *inner.follow, *FREE_TOO.get(network, ())}
    assert narrower(plan) == (norms_of(model) if shortcuts else free)
    slim = torchslim.apply(model, plan)
    if network.startswith("fasterrcnn"):
        learns_to_detect(slim)
    else:
        learnt = check_training(slim, torch.cat([inputs, -inputs]))
        assert learnt == {name for name, _ in slim.named_parameters()}


def learns_to_detect(slim: nn.Module) -> None:
    """One step on two pictures with a box each: every weight gets a finite gradient."""
    boxes = torch.tensor([[8.0, 8.0, 60.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([3])}, {"boxes": boxes / 2, "labels": torch.tensor([1])}]
    losses = slim.train()([torch.rand(3, 64, 96), torch.rand(3, 64, 80)], targets)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in slim.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


# What the norms do not show


@pytest.mark.parametrize("network", ["seresnet18", "seresnet50"])
def test_both_matrices_of_a_gate_follow_the_shortcut(network: str) -> None:
    plan, inner = planned(network, "all"), planned(network, "inner")
    last = "bn2" if network == "seresnet18" else "bn3"
    for name in blocks((2, 2, 2, 2) if network == "seresnet18" else (3, 4, 6, 3), ""):
        channels = kept(plan, f"{name}{last}.weight")
        assert kept(plan, f"{name}se.fc1.weight", 1) == channels
        assert kept(plan, f"{name}se.fc2.weight") == kept(plan, f"{name}se.fc2.bias") == channels
        assert set(plan.kept[f"{name}se.fc1.weight"]) == {1}  # the squeezed width stays
    assert not any(".se." in name for name in inner.kept)


@pytest.mark.parametrize("strategy", ["inner", "all"])
def test_the_groups_of_a_resnext_stay_and_keep_equally_many(strategy: str) -> None:
    plan = planned("resnext50_32x4d", strategy)
    slim = torchslim.apply(build("resnext50_32x4d")[0], plan)
    for stage, (count, width) in enumerate(((3, 128), (4, 256), (6, 512), (3, 1024)), 1):
        for block in range(count):
            layer = slim.get_submodule(f"layer{stage}.{block}.conv2")
            wanted = 32 * math.ceil(SHARE * width / 32)
            assert (layer.groups, layer.in_channels, layer.out_channels) == (32, wanted, wanted)
            for dim in (0, 1):
                by_group = [index // (width // 32) for index in kept(plan, f"layer{stage}.{block}.conv2.weight", dim)]
                assert by_group == [group for group in range(32) for _ in range(wanted // 32)]


def test_a_dense_layer_sees_what_stays_of_all_layers_before_it() -> None:
    plan = planned("densenet121", "all")
    for block, count in enumerate((6, 12, 24, 16), 1):
        before = "features.conv0" if block == 1 else f"features.transition{block - 1}.conv"
        width = {1: 64, 2: 128, 3: 256, 4: 512}[block]
        seen = list(kept(plan, f"{before}.weight"))
        for layer in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            assert kept(plan, f"{name}.norm1.weight") == kept(plan, f"{name}.conv1.weight", 1) == tuple(seen)
            seen += [width + place for place in plan.kept[f"{name}.conv2.weight"].get(0, range(32))]
            width += 32
        end = f"features.transition{block}.norm" if block < 4 else "features.norm5"
        assert kept(plan, f"{end}.weight") == tuple(seen)


def test_what_is_cut_of_a_detectors_pyramid_and_heads() -> None:
    pyramid = {f"backbone.fpn.{kind}_blocks.{level}.0" for kind in ("inner", "layer") for level in range(4)}
    heads = {"rpn.head.conv.0.0", "roi_heads.box_head.fc6", "roi_heads.box_head.fc7"}
    plan, network = planned("fasterrcnn_resnet50_fpn", "all"), "fasterrcnn_resnet50_fpn"
    made = {name.removesuffix(".weight") for name, dims in plan.kept.items() if 0 in dims and name.endswith(".weight")}
    assert {name for name in made if not name.startswith("backbone.body.")} == pyramid | heads
    for kind in ("inner", "layer"):  # each level is added to the next; one head reads all levels
        assert len({kept(plan, f"backbone.fpn.{kind}_blocks.{level}.0.weight") for level in range(4)}) == 1
    levels = kept(plan, "backbone.fpn.layer_blocks.0.0.weight")
    assert kept(plan, "rpn.head.conv.0.0.weight", 1) == levels
    assert kept(plan, "roi_heads.box_head.fc6.weight", 1) == tuple(49 * c + cell for c in levels for cell in range(49))
    for reader in ("cls_logits", "bbox_pred"):
        assert plan.kept[f"rpn.head.{reader}.weight"] == {1: kept(plan, "rpn.head.conv.0.0.weight")}
    for reader in ("cls_score", "bbox_pred"):
        assert plan.kept[f"roi_heads.box_predictor.{reader}.weight"] == {1: kept(plan, "roi_heads.box_head.fc7.weight")}
    inner = planned(network, "inner")
    assert {name for name in inner.kept if not name.startswith("backbone.body.")} == set()


def test_a_detector_whose_norms_are_frozen() -> None:
    """Trained backbones come with norms that are buffers and plain arithmetic."""
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d, trainable_layers=3)
    random_statistics(backbone)
    for name, buffer in backbone.named_buffers():
        buffer.copy_(torch.rand(buffer.shape) + 0.5 * (not name.endswith("mean")))
    model = torchvision.models.detection.FasterRCNN(backbone, 10, min_size=64, max_size=96).eval()
    inputs: list[Tensor] = [torch.rand(3, 64, 96)]
    plan = torchslim.plan(model, inputs, macs=0.5)
    assert narrower(plan) <= set(fasterrcnn()["all"].cut) | set(fasterrcnn()["all"].follow)
    slim = torchslim.apply(model, plan)
    assert torchslim.verify(model, slim, plan, inputs) < 1e-10
    assert [p.requires_grad for p in slim.parameters()] == [p.requires_grad for p in model.parameters()]


def test_an_unknown_network_or_strategy_is_named() -> None:
    with pytest.raises(RequestError, match=r"no presets for 'lenet'; there are some for .*resnet50"):
        torchslim.preset("lenet", "inner")
    with pytest.raises(RequestError, match="shufflenet_v2_x1_0 has no strategy 'all'; wanted 'inner'"):
        torchslim.preset("torchvision:shufflenet_v2_x1_0", "all")
    with pytest.raises(RequestError, match="no presets for 'torchslim:mobilenet_v3_large'"):
        torchslim.preset("torchslim:mobilenet_v3_large", "inner")


@pytest.mark.parametrize("strategy", ["inner", "all"])
def test_a_librarys_name_in_front_makes_no_difference(strategy: str) -> None:
    patterns = torchslim.preset("mobilenet_v2", strategy)
    assert torchslim.preset("torchslim:mobilenet_v2", strategy) == patterns
    assert torchslim.preset("torchvision:mobilenet_v2", strategy) == patterns
