"""What to cut in well-known networks: `only=` patterns by network and strategy.

"inner" leaves the channels that cross a shortcut alone; "all" cuts them too, every layer on a shortcut keeping the same
channels. The rows follow network slimming (Liu et al. 2017) as practised for each family: they name the convolutions
whose batch norm's scales decide. They are narrower than `shortcuts=False` and `shortcuts=True`, which cut whatever can
be cut. Norms between a named layer and the next that reads its channels follow (those of depthwise convolutions, say).

In DenseNet each bn1 sees the channels of all layers before it, so that "all" cuts what many layers read: take a very
small share there, such as `scope={"*.denselayer*.conv1": 0.5, "*": 0.95}`.
"""

from __future__ import annotations

from torchslim.errors import RequestError

Patterns = tuple[str, ...]

_BASIC_INNER = ("layer?.*.conv1",)
_BASIC_ALL = (*_BASIC_INNER, "conv1", "layer?.*.conv2", "layer?.*.downsample.*")
_BOTTLENECK_INNER = ("layer?.*.conv1", "layer?.*.conv2")
_BOTTLENECK_ALL = (*_BOTTLENECK_INNER, "conv1", "layer?.*.conv3", "layer?.*.downsample.*")
# Our MobileNetV2 calls the expansion body.0.0 and the projection body.2.0, torchvision's conv.0.0 and conv.2: the
# patterns fit both. features.0 and 1 come first.
_EXPANSIONS = ("features.[2-9].*.0.0", "features.1[0-9].*.0.0")
_PROJECTIONS = ("features.[2-9].*.2*", "features.1[0-9].*.2*")
# Entry, middle and exit flow: what is neither read by two branches nor added to a shortcut.
_LEGACY_XCEPTION = ("conv1", "block1.rep.0.pointwise", "block[23].rep.1.pointwise", "block[4-9].rep.[14].pointwise",
                    "block1[01].rep.[14].pointwise", "block12.rep.1.pointwise", "conv[34].pointwise")
_XCEPTION = ("stem.0.conv", "blocks.*.stack.conv[12].conv_pw", "blocks.12.stack.conv3.conv_pw")
# The body of torchvision's Faster R-CNN is its ResNet under another name.
_BODY = tuple(f"backbone.body.{pattern}" for pattern in _BOTTLENECK_INNER)
_BODY_ALL = tuple(f"backbone.body.{pattern}" for pattern in _BOTTLENECK_ALL)

PRESETS: dict[str, dict[str, Patterns]] = {
    # network                    what "inner" cuts                          what "all" cuts
    "resnet18":                {"inner": _BASIC_INNER,                      "all": _BASIC_ALL},
    "resnet50":                {"inner": _BOTTLENECK_INNER,                 "all": _BOTTLENECK_ALL},
    "resnetv2_18":             {"inner": ("stages.*.conv1",),
                                "all": ("stages.*.conv1", "stages.*.conv2", "stem.conv", "stages.*.downsample.*")},
    "seresnet18":              {"inner": _BASIC_INNER,                      "all": _BASIC_ALL},
    "seresnet50":              {"inner": _BOTTLENECK_INNER,                 "all": _BOTTLENECK_ALL},
    "resnext50_32x4d":         {"inner": _BOTTLENECK_INNER,                 "all": _BOTTLENECK_ALL},
    "mobilenet_v2":            {"inner": _EXPANSIONS,                       "all": (*_EXPANSIONS, *_PROJECTIONS)},
    # The right branch of every unit; the left one and the last 1x1 meet in the shuffle.
    "shufflenet_v2_x1_0":      {"inner": ("stage?.*.branch2.0",)},
    "shufflenet_v2":           {"inner": ("features.*.right.0.0",)},
    # In the middle flow, blocks 4 to 11, the third separable convolution meets the residual: so do the layers before.
    "legacy_xception":         {"inner": _LEGACY_XCEPTION,
                                "all": (*_LEGACY_XCEPTION, "block[4-9].rep.7.pointwise", "block1[01].rep.7.pointwise",
                                        "block3.rep.4.pointwise", "block3.skip")},
    "xception41":              {"inner": _XCEPTION,
                                "all": (*_XCEPTION, "blocks.[3-9].stack.conv3.conv_pw", "blocks.10.stack.conv3.conv_pw",
                                        "blocks.2.stack.conv3.conv_pw", "blocks.2.shortcut.conv")},
    # Each bn1 of a dense layer sees the channels of all layers before it: the layers that make these are named.
    "densenet121":             {"inner": ("features.denseblock?.denselayer*.conv1",),
                                "all": ("features.denseblock?.denselayer*.conv?", "features.conv0",
                                        "features.transition?.conv")},
    "darknet53":               {"inner": ("stages.*.conv1.conv",),
                                "all": ("stages.*.conv1.conv", "stages.*.conv2.conv", "stages.*.conv_down.conv")},
    "fasterrcnn_resnet50_fpn": {"inner": _BODY,
                                "all": (*_BODY_ALL, "backbone.fpn.*", "rpn.head.conv*", "roi_heads.box_head.*")},
}


def preset(network: str, strategy: str) -> Patterns:
    """The `only=` patterns of a strategy for a network: `plan(model, inputs, only=preset("resnet50", "inner"), ...)`.

    A library's name in front makes no difference: those of MobileNetV2 fit ours and torchvision's.

    Raises:
        RequestError: no such network, or no such strategy for it.
    """
    name = network.rpartition(":")[2]
    if name not in PRESETS:
        raise RequestError(f"preset: no presets for {network!r}; there are some for {', '.join(sorted(PRESETS))}; "
                           "any other network takes shortcuts=False or only= patterns of its own")
    if strategy not in PRESETS[name]:
        raise RequestError(f"preset: {name} has no strategy {strategy!r}; wanted "
                           f"{' or '.join(repr(known) for known in PRESETS[name])}")
    return PRESETS[name][strategy]
