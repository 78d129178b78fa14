"""The networks of the matrix: names, sizes of inputs, options. Weights are random; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CLASSIFICATION = "torchvision: classification"
SEGMENTATION = "torchvision: segmentation"
DETECTION = "torchvision: detection"
QUANTIZABLE = "torchvision: quantizable (in float, not converted)"
VIDEO = "torchvision: video"
FLOW = "torchvision: optical flow"
TIMM = "timm: every convolutional family"
TRANSFORMERS = "Transformers without convolutions beyond the patch embedding"


@dataclass(frozen=True)
class Network:
    """One row of the matrix.

    Attributes:
        name: `library:name`, as `torchslim.create_model` takes it.
        section: the part of the table it stands in.
        size: shape of one input without the batch; None for the library's own.
        proof: the smaller shape on which it is proven and trained, where `size` takes too long.
        options: of the builder.
        approximate: cut with `allow_approximate=True`.
    """

    name: str
    section: str
    size: tuple[int, ...] | None = None
    proof: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    approximate: bool = False

    @property
    def key(self) -> str:
        """What tells the rows apart."""
        return f"{self.name} (approximate)" if self.approximate else self.name


def _square(side: int) -> tuple[int, ...]:
    return (3, side, side)


# --- torchvision --------------------------------------------------------------------------------------------

_CLASSIFIERS = """
    alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn squeezenet1_0 squeezenet1_1
    resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2
    resnext50_32x4d resnext101_32x8d resnext101_64x4d densenet121 densenet161 densenet169 densenet201
    googlenet inception_v3 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
    mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l
    regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
    regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
    regnet_y_128gf convnext_tiny convnext_small convnext_base convnext_large
    swin_t swin_v2_t maxvit_t
"""

# More than about five billion multiply-adds: planned at their usual size, proven and trained at a smaller one.
_HEAVY = """
    vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn resnet101 resnet152 wide_resnet50_2 wide_resnet101_2
    resnext101_32x8d resnext101_64x4d densenet161 efficientnet_b6 efficientnet_b7 efficientnet_v2_m efficientnet_v2_l
    regnet_x_8gf regnet_x_16gf regnet_x_32gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf
    convnext_small convnext_base convnext_large vgg11 vgg11_bn
"""

_SEGMENTERS: dict[str, dict[str, bool]] = {
    "fcn_resnet50": {"aux_loss": True}, "fcn_resnet101": {"aux_loss": True},
    "deeplabv3_resnet50": {"aux_loss": True}, "deeplabv3_resnet101": {"aux_loss": True},
    "deeplabv3_mobilenet_v3_large": {"aux_loss": True}, "lraspp_mobilenet_v3_large": {},
}

# Small pictures and few proposals: what is cut, and how, does not depend on them.
_SMALL = {"min_size": 128, "max_size": 192}
_TWO_STAGES = {**_SMALL, "rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 50,
               "rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 50}
_DETECTORS: dict[str, dict[str, int]] = {
    "fasterrcnn_resnet50_fpn": _TWO_STAGES, "fasterrcnn_resnet50_fpn_v2": _TWO_STAGES,
    "fasterrcnn_mobilenet_v3_large_fpn": _TWO_STAGES, "fasterrcnn_mobilenet_v3_large_320_fpn": _TWO_STAGES,
    "maskrcnn_resnet50_fpn": _TWO_STAGES, "maskrcnn_resnet50_fpn_v2": _TWO_STAGES,
    "keypointrcnn_resnet50_fpn": _TWO_STAGES, "retinanet_resnet50_fpn": _SMALL, "retinanet_resnet50_fpn_v2": _SMALL,
    "fcos_resnet50_fpn": _SMALL, "ssd300_vgg16": {}, "ssdlite320_mobilenet_v3_large": {},
}

_QUANTIZABLE = """
    mobilenet_v2 mobilenet_v3_large resnet18 resnet50 resnext101_32x8d resnext101_64x4d googlenet inception_v3
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
"""

# Channels, frames, height, width.
_VIDEO = {"r3d_18": (3, 8, 64, 64), "mc3_18": (3, 8, 64, 64), "r2plus1d_18": (3, 8, 64, 64), "s3d": (3, 16, 224, 224),
          "mvit_v2_s": (3, 16, 224, 224), "swin3d_t": (3, 8, 64, 64)}


def _torchvision() -> Iterator[Network]:
    for name in _CLASSIFIERS.split():
        # The auxiliary head of Inception wants all of 299.
        size, small = (299, None) if name == "inception_v3" else (224, _square(96) if name in _HEAVY.split() else None)
        yield Network(f"torchvision:{name}", CLASSIFICATION, _square(size), small)
    for name, heads in _SEGMENTERS.items():
        yield Network(f"torchvision:{name}", SEGMENTATION, _square(224), _square(96), heads)
    for name, options in _DETECTORS.items():
        yield Network(f"torchvision:{name}", DETECTION, (3, 128, 160), None, options)
    for name in _QUANTIZABLE.split():
        size, small = (299, None) if name == "inception_v3" else (224, _square(96) if name in _HEAVY.split() else None)
        yield Network(f"torchvision:quantized_{name}", QUANTIZABLE, _square(size), small)
    for name, shape in _VIDEO.items():
        yield Network(f"torchvision:{name}", VIDEO, shape)
    for name in ("raft_small", "raft_large"):
        yield Network(f"torchvision:{name}", FLOW, _square(128))


# --- timm ---------------------------------------------------------------------------------------------------

# Family (a module of timm.models): its smallest network, and others that are built differently.
_FAMILIES = """
    byoanet: halonet_h1 botnet26t_256 eca_halonext26ts lambda_resnet26t
    byobnet: test_byobnet repvgg_a0 mobileone_s0 gernet_s gcresnext26ts bat_resnext26ts regnetz_b16 resnet51q
             resnet50_clip
    coat: coat_tiny coat_lite_tiny
    convmixer: convmixer_768_32
    convnext: test_convnext test_convnext2 test_convnext3 convnext_atto convnext_atto_ols convnextv2_atto
              convnext_zepto_rms
    cpubone: cpubone_nano
    csatv2: csatv2
    cspnet: cs3darknet_focus_s cspresnet50 cspresnext50 darknet17 cs3sedarknet_xdw
    cspnext: cspnext_tiny
    davit: davit_tiny
    densenet: densenet121 densenetblur121d
    dla: dla46x_c dla34 dla60_res2net
    dpn: dpn48b dpn68
    edgenext: edgenext_xx_small
    efficientformer: efficientformer_l1
    efficientformer_v2: efficientformerv2_s0
    efficientnet: test_efficientnet test_efficientnet_gn test_efficientnet_ln test_efficientnet_evos efficientnet_b0
                  efficientnet_lite0 efficientnet_es efficientnetv2_rw_t efficientnet_cc_b0_4e tf_efficientnet_b0
                  mixnet_s tinynet_e fbnetc_100 spnasnet_100 semnasnet_050 mobilenetv1_100 mobilenet_edgetpu_v2_xs
    efficientvim: efficientvim_m1
    efficientvit_mit: efficientvit_b0 efficientvit_l1
    efficientvit_msra: efficientvit_m0
    fasternet: fasternet_t0
    fastvit: fastvit_t8 fastvit_sa12 fastvit_mci0
    focalnet: focalnet_tiny_srf
    gcvit: gcvit_xxtiny
    ghostnet: ghostnet_050 ghostnetv2_100 ghostnetv3_050
    hardcorenas: hardcorenas_b
    hgnet: hgnetv2_b0 hgnet_tiny
    hieradet_sam2: sam2_hiera_tiny
    hrnet: hrnet_w18_small
    iformer: iformer_t
    inception_next: inception_next_atto
    inception_resnet_v2: inception_resnet_v2
    inception_v3: inception_v3
    inception_v4: inception_v4
    lcnetv2: lcnetv2_small
    levit: levit_128s levit_conv_128s
    lowformer: lowformer_b0
    mambaout: test_mambaout mambaout_femto
    maxxvit: test_coatnet test_maxvit coatnext_nano_rw_224
    metaformer: poolformerv2_s12 poolformer_s12 convformer_s18 caformer_s18
    mobilenetv3: mobilenetv3_small_050 lcnet_035 fbnetv3_b mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium
    mobilenetv5: mobilenetv5_base
    mobilevit: mobilevit_xxs mobilevitv2_050
    mvitv2: mvitv2_tiny
    nasnet: nasnetalarge
    nest: nest_tiny
    nextvit: nextvit_small
    nfnet: test_nfnet nf_regnet_b0 nf_resnet26 eca_nfnet_l0 dm_nfnet_f0
    pit: pit_ti_224
    pnasnet: pnasnet5large
    pvt_v2: pvt_v2_b0
    rdnet: rdnet_tiny
    regnet: regnetx_002 regnety_002 regnetz_005 regnety_040_sgn
    repghost: repghostnet_050
    repvit: repvit_m1
    res2net: res2next50 res2net50_14w_8s
    resnest: resnest14d resnest50d_4s2x40d
    resnet: test_resnet resnet10t resnet26t resnetaa34d resnetblur18 ecaresnet26t seresnext26t_32x4d resnetrs50
            resnet50_gn
    resnetv2: resnetv2_18 resnetv2_50x1_bit resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn
    rexnet: rexnet_100 rexnetr_100
    selecsls: selecsls42
    senet: legacy_seresnet18 legacy_seresnext26_32x4d
    sequencer: sequencer2d_s
    shvit: shvit_s1
    sknet: skresnet18 skresnext50_32x4d
    starnet: starnet_s050
    swiftformer: swiftformer_xs
    tiny_vit: tiny_vit_5m_224
    tresnet: tresnet_m
    twins: twins_svt_small
    vgg: vgg11 vgg11_bn
    visformer: visformer_tiny
    vision_transformer_hybrid: vit_tiny_r_s16_p8_224 vit_small_resnet26d_224
    vitamin: vitamin_small_224
    volo: volo_d1_224
    vovnet: ese_vovnet19b_slim_dw vovnet39a ese_vovnet39b_evos
    xception: legacy_xception
    xception_aligned: xception41p xception41
    xcit: xcit_nano_12_p8_224
"""

# Families without convolutions, or with none beyond the patch embedding: a few show what happens.
_WITHOUT_CONVOLUTIONS = """
    beit: convit: convit_tiny
    cait: cait_xxs24_224
    crossvit: deepseek_vit: deit: deit_tiny_patch16_224
    eva: gemma4_vit: hiera: mlp_mixer: gmlp_ti16_224
    naflexvit: qwen3_vit: swin_transformer: swin_tiny_patch4_window7_224
    swin_transformer_v2: swin_transformer_v2_cr: tnt: vision_transformer: test_vit
    vision_transformer_relpos: vision_transformer_sam:
"""

# Smaller than the library's own 896.
_SIZES = {"timm:sam2_hiera_tiny": 224}
_PROOF_SIZES = {"timm:nasnetalarge": 128, "timm:pnasnet5large": 128, "timm:inception_v4": 128, "timm:xception41": 128,
                "timm:xception41p": 128, "timm:inception_resnet_v2": 128, "timm:vgg11": 96, "timm:vgg11_bn": 96,
                "timm:dm_nfnet_f0": 128, "timm:efficientvit_l1": 128, "timm:mobilenetv5_base": 128,
                "timm:vovnet39a": 128, "timm:ese_vovnet39b_evos": 128, "timm:convmixer_768_32": 112,
                "timm:legacy_xception": 128, "timm:tresnet_m": 128, "timm:eca_nfnet_l0": 128}


def _timm() -> Iterator[Network]:
    for text, section in ((_FAMILIES, TIMM), (_WITHOUT_CONVOLUTIONS, TRANSFORMERS)):
        for word in text.split():
            if not word.endswith(":"):
                name = f"timm:{word}"
                own, small = _SIZES.get(name), _PROOF_SIZES.get(name)
                yield Network(name, section, _square(own) if own else None, _square(small) if small else None)


def families() -> dict[str, tuple[str, ...]]:
    """timm's families and their networks in the matrix; the tuple is empty for pure transformers left out."""
    found: dict[str, tuple[str, ...]] = {}
    family = ""
    for word in (_FAMILIES + _WITHOUT_CONVOLUTIONS).split():
        if word.endswith(":"):
            family = word[:-1]
            found[family] = ()
        else:
            found[family] += (word,)
    return found


NETWORKS: tuple[Network, ...] = (*_torchvision(), *_timm())
