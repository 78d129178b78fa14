"""Networks of other people's libraries, at least one of each family, where the library is installed; random weights.

A name is `library:name`. What the name means is the library's entry in `BUILDERS`; options are arguments of the class
or function that it stands for. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from matrix.networks import Network

# --- Ultralytics: scale n of each version and task -------------------------------------------------------------

_YOLO_TASKS = {"seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel", "cls": "ClassificationModel"}
_YOLOS = """
    yolov3-tiny yolov5n yolov6n yolov8n yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-cls yolov8n-p2 yolov8n-ghost
    yolov9t yolov10n yolo11n yolo11n-seg yolo11n-pose yolo11n-obb yolo11n-cls yolo12n yolo12n-seg yolo12n-cls
    yolo26n yolo26n-seg yolo26n-pose yolo26n-obb yolo26n-cls rtdetr-l rtdetr-resnet50
"""


def _ultralytics(name: str, **options: Any) -> nn.Module:
    # The library writes its settings at the first import.
    os.environ.setdefault("YOLO_CONFIG_DIR", os.path.join(tempfile.gettempdir(), "ultralytics-settings"))
    tasks = importlib.import_module("ultralytics.nn.tasks")
    kind = "RTDETRDetectionModel" if name.startswith("rtdetr") else _YOLO_TASKS.get(
        name.rpartition("-")[2], "DetectionModel")
    model: nn.Module = getattr(tasks, kind)(f"{name}.yaml", verbose=False, **options)
    return model


# --- segmentation_models_pytorch: each decoder, and one encoder of each family --------------------------------

_DECODERS = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer"
_ENCODERS = """
    resnext50_32x4d timm-resnest14d timm-res2net50_26w_4s timm-regnetx_002 timm-regnety_002 timm-gernet_s
    se_resnet50 timm-skresnet18 densenet121 inceptionresnetv2 inceptionv4 efficientnet-b0 timm-efficientnet-b0
    mobilenet_v2 timm-mobilenetv3_small_075 dpn68 vgg11_bn mit_b0 mobileone_s0 xception tu-convnext_atto
"""


def _segmentation(name: str, **options: Any) -> nn.Module:
    decoder, _, encoder = name.partition("/")
    library = importlib.import_module("segmentation_models_pytorch")
    model: nn.Module = getattr(library, decoder)(encoder or "resnet18", encoder_weights=None, classes=3, **options)
    return model


# --- MONAI: two and three dimensions ------------------------------------------------------------------------

_PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_SPACE = {**_PLANE, "spatial_dims": 3}
_MONAI: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "UNet": ((1, 64, 64), {**_PLANE, "channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2}),
    "BasicUNet": ((1, 32, 32, 32), {**_SPACE, "features": (16, 16, 32, 64, 128, 16)}),
    "BasicUNetPlusPlus": ((1, 64, 64), {**_PLANE, "features": (16, 16, 32, 64, 128, 16)}),
    "DynUNet": ((1, 64, 64), {**_PLANE, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
                              "res_block": True}),
    "AttentionUnet": ((1, 64, 64), {**_PLANE, "channels": (16, 32, 64), "strides": (2, 2)}),
    "SegResNet": ((1, 32, 32, 32), {**_SPACE, "init_filters": 16}),
    "SegResNetDS": ((1, 64, 64), {**_PLANE, "init_filters": 16}),
    "SegResNetVAE": ((1, 64, 64), {**_PLANE, "input_image_size": (64, 64), "init_filters": 16}),
    "VNet": ((1, 32, 32, 32), {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}),
    "HighResNet": ((1, 64, 64), _PLANE),
    "FlexibleUNet": ((3, 64, 64), {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}),
    "UNETR": ((1, 64, 64), {**_PLANE, "img_size": 64, "feature_size": 16}),
    "SwinUNETR": ((1, 64, 64), {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "feature_size": 12}),
    "AHNet": ((1, 64, 64, 32), {"spatial_dims": 3, "layers": (1, 1, 1, 1), "psp_block_num": 0}),
    "RegUNet": ((1, 64, 64), {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 16, "depth": 2}),
    "LocalNet": ((1, 64, 64), {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 16,
                               "extract_levels": (0, 1, 2), "out_kernel_initializer": "kaiming_uniform",
                               "out_activation": None, "out_channels": 2}),
    "VoxelMorphUNet": ((2, 64, 64), {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 16,
                                     "channels": (16, 32, 32, 32, 32, 16), "final_conv_channels": (16,)}),
    "MedNeXtS": ((1, 64, 64), {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}),
    "HoVerNet": ((3, 256, 256), {"mode": "fast", "in_channels": 3, "out_classes": 2}),
    "DenseNet121": ((1, 32, 32, 32), _SPACE),
    "SEResNet50": ((3, 64, 64), {"spatial_dims": 2, "in_channels": 3, "num_classes": 2}),
    "EfficientNetBN": ((3, 64, 64), {"model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": 3,
                                     "num_classes": 2, "pretrained": False}),
    "ResNetFeatures": ((1, 32, 32, 32), {"model_name": "resnet10", "pretrained": False}),
    "Classifier": ((1, 64, 64), {"in_shape": (1, 64, 64), "classes": 3, "channels": (16, 32, 64),
                                  "strides": (2, 2, 2)}),
    "AutoEncoder": ((1, 64, 64), {**_PLANE, "channels": (16, 32), "strides": (2, 2)}),
    "VarAutoEncoder": ((1, 64, 64), {"spatial_dims": 2, "in_shape": (1, 64, 64), "out_channels": 1, "latent_size": 8,
                                     "channels": (16, 32), "strides": (2, 2)}),
    "PatchDiscriminator": ((1, 64, 64), {"spatial_dims": 2, "channels": 16, "in_channels": 1, "num_layers_d": 3}),
    "AutoencoderKL": ((1, 64, 64), {**_PLANE, "channels": (32, 32, 64), "num_res_blocks": 1, "norm_num_groups": 8,
                                    "latent_channels": 4, "attention_levels": (False, False, False),
                                    "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}),
    "VQVAE": ((1, 64, 64), {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (32, 32),
                            "num_res_channels": (32, 32), "downsample_parameters": ((2, 4, 1, 1),) * 2,
                            "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}),
}

# --- pytorchcv: a network of each family ----------------------------------------------------------------------

_PYTORCHCV = """
    alexnet zfnet vgg11 bn_vgg11 bninception resnet10 preresnet10 resnext14_32x4d seresnet10 sepreresnet10 senet16
    ibn_resnet50 ibnb_resnet50 airnet50_1x64d_r2 bam_resnet18 cbam_resnet18 resattnet56 sknet50 scnet50 resnesta18
    resneta18 resnetd50b diaresnet10 diapreresnet10 pyramidnet101_a360 diracnet18v2 sharesnet18 densenet121
    sparsenet121 condensenet74_c4_g4 peleenet wrn50_2 drnc26 drnd22 dpn68 darknet_ref darknet_tiny darknet53 bagnet9
    dla34 fishnet99 espnetv2_wd2 dicenet_wd5 hrnet_w18_small_v1 vovnet27s selecsls42 hardnet39ds squeezenet_v1_1
    squeezeresnet_v1_1 sqnxt23_w1 shufflenet_g1_wd4 shufflenet_g3_wd4 shufflenetv2_wd2 shufflenetv2b_wd2
    menet108_8x1_g3 mobilenet_wd4 mobilenetb_wd4 fdmobilenet_wd4 mobilenetv2_wd4 mobilenetv3_small_w7d20 igcv3_wd4
    ghostnet mnasnet_b1 proxylessnas_cpu fbnet_cb spnasnet nasnet_4a1056 efficientnet_b0 efficientnet_edge_small_b
    mixnet_s xception inceptionv3 inceptionv4 inceptionresnetv1 regnetx002 regnety002 octresnet10_ad2
    isqrtcovresnet18 revnet38 irevnet301
"""
_PYTORCHCV_SMALL = """
    nin_cifar10 ror3_56_cifar10 rir_cifar10 shakeshakeresnet20_2x16d_cifar10 shakedropresnet20_cifar10
    resdropresnet20_cifar10 wrn20_10_1bit_cifar10 resnet20_cifar10 preresnet20_cifar10 densenet40_k12_cifar10
    xdensenet40_2_k24_bc_cifar10 resnext20_16x4d_cifar10 fractalnet_cifar10
"""
_PYTORCHCV_MAPS = {
    "fcn8sd_resnetd50b_voc": 64, "pspnet_resnetd50b_voc": 64, "deeplabv3_resnetd50b_voc": 64,
    "bisenet_resnet18_celebamaskhq": 64, "danet_resnetd50b_cityscapes": 96, "icnet_resnetd50b_cityscapes": 96,
    "fastscnn_cityscapes": 96, "cgnet_cityscapes": 96, "dabnet_cityscapes": 96, "sinet_cityscapes": 128,
    "enet_cityscapes": 96, "erfnet_cityscapes": 96, "linknet_cityscapes": 96, "segnet_cityscapes": 64,
    "unet_cityscapes": 64, "lednet_cityscapes": 128, "esnet_cityscapes": 96, "edanet_cityscapes": 96,
    "simplepose_resnet18_coco": 96, "simplepose_mobile_resnet18_coco": 96, "centernet_resnet18_voc": 96,
    "lwopenpose2d_mobilenet_cmupan_coco": 96, "alphapose_fastseresnet101b_coco": 96, "ibppose_coco": 128,
}


def _pytorchcv(name: str, **options: Any) -> nn.Module:
    model: nn.Module = importlib.import_module("pytorchcv.model_provider").get_model(name, pretrained=False, **options)
    return model


# --- spandrel: restoration ----------------------------------------------------------------------------------

_SPANDREL: dict[str, dict[str, Any]] = {
    "Compact.Compact": {"num_feat": 32, "num_conv": 8}, "ESRGAN.ESRGAN": {"num_filters": 32, "num_blocks": 2},
    "SPAN.SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 32}, "PLKSR.PLKSR": {"n_blocks": 4},
    "PLKSR.RealPLKSR": {"n_blocks": 4}, "DnCNN.DnCNN": {"nb": 8}, "DRUNet.DRUNet": {"nc": [16, 32, 64, 64], "nb": 2},
    "SCUNet.SCUNet": {"dim": 64, "config": [1, 1, 1, 1, 1, 1, 1]},
    "NAFNet.NAFNet": {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "RCAN.RCAN": {"n_resgroups": 2, "n_resblocks": 2, "n_feats": 32}, "SAFMN.SAFMN": {"dim": 32},
    "RealCUGAN.UpCunet2x": {}, "FBCNN.FBCNN": {"nb": 1}, "MoSR.MoSR": {"n_block": 4, "dim": 32},
    "SwiftSRGAN.SwiftSRGAN": {"num_blocks": 4},
    "SwinIR.SwinIR": {"depths": [2, 2], "num_heads": [2, 2], "embed_dim": 24, "window_size": 8},
}


def _spandrel(name: str, **options: Any) -> nn.Module:
    package, _, kind = name.partition(".")
    model: nn.Module = getattr(importlib.import_module(f"spandrel.architectures.{package}"), kind)(**options)
    return model


# --- diffusers: denoisers and autoencoders ---------------------------------------------------------------------

_BLOCKS = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
_DIFFUSERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "AutoencoderKL": ((3, 32, 32), {**_BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2,
                                    "up_block_types": ("UpDecoderBlock2D",) * 2}),
    "VQModel": ((3, 32, 32), {**_BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2,
                              "up_block_types": ("UpDecoderBlock2D",) * 2}),
    "AutoencoderTiny": ((3, 32, 32), {"encoder_block_out_channels": (32,) * 3, "decoder_block_out_channels": (32,) * 3,
                                      "num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}),
    "UNet2DModel": ((3, 32, 32), {**_BLOCKS, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                                  "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8}),
}


class _Denoiser(nn.Module):
    """A denoiser at a fixed time step, which takes a picture alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x, 10).sample  # type: ignore[no-any-return]


def _diffusers(name: str, **options: Any) -> nn.Module:
    model: nn.Module = getattr(importlib.import_module("diffusers"), name)(**options)
    return _Denoiser(model) if name.startswith("UNet") else model


# --- what stands alone ------------------------------------------------------------------------------------------

_OTHERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "efficientnet_pytorch:efficientnet-b0": ((3, 64, 64), {}),
    "facenet_pytorch:InceptionResnetV1": ((3, 160, 160), {"classify": True, "num_classes": 10}),
    "facenet_pytorch:PNet": ((3, 48, 48), {"pretrained": False}),
    "facenet_pytorch:RNet": ((3, 24, 24), {"pretrained": False}),
    "facenet_pytorch:ONet": ((3, 48, 48), {"pretrained": False}),
    **{f"kornia:feature.{name}": ((1, 32, 32), {"pretrained": False})
       for name in ("HardNet", "HardNet8", "HyNet", "SOSNet", "TFeat")},
    "kornia:feature.XFeatModel": ((1, 64, 64), {}),
    "kornia:models.dexined.DexiNed": ((3, 64, 64), {"pretrained": False}),
    "doctr:recognition.crnn_vgg16_bn": ((3, 32, 64), {}),
    "doctr:recognition.crnn_mobilenet_v3_small": ((3, 32, 64), {}),
    "doctr:detection.db_resnet50": ((3, 128, 128), {}), "doctr:detection.db_mobilenet_v3_large": ((3, 128, 128), {}),
    "doctr:detection.linknet_resnet18": ((3, 128, 128), {}), "doctr:detection.fast_tiny": ((3, 128, 128), {}),
    "doctr:classification.textnet_tiny": ((3, 64, 64), {}), "doctr:classification.magc_resnet31": ((3, 32, 64), {}),
    "doctr:classification.vgg16_bn_r": ((3, 32, 64), {}), "doctr:classification.starnet_s3": ((3, 64, 64), {}),
    "torchaudio:Wav2Letter": ((1, 1600), {"num_features": 1}), "torchaudio:ConvTasNet": ((1, 1600), {}),
    "torchaudio:DeepSpeech": ((1, 20, 16), {"n_feature": 16, "n_hidden": 64}),
}


def _attribute(module: str, name: str, **options: Any) -> nn.Module:
    package, _, attribute = f"{module}.{name}".rpartition(".")
    model: nn.Module = getattr(importlib.import_module(package), attribute)(**options)
    return model


def _doctr(name: str, **options: Any) -> nn.Module:
    backbone = {} if name.startswith("classification") else {"pretrained_backbone": False}
    package, _, function = name.partition(".")
    model: nn.Module = getattr(getattr(importlib.import_module("doctr.models"), package), function)(
        pretrained=False, **backbone, **options)
    return _Keyworded(model) if backbone else model


class _Keyworded(nn.Module):
    """A network that returns numbers, and no words, on request."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x, return_model_output=True)["out_map"]  # type: ignore[no-any-return]


def _efficientnet(name: str, **options: Any) -> nn.Module:
    model: nn.Module = importlib.import_module("efficientnet_pytorch").EfficientNet.from_name(name, **options)
    return model


def _attributes_of(module: str) -> Callable[..., nn.Module]:
    return lambda name, **options: _attribute(module, name, **options)


BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "ultralytics": _ultralytics, "segmentation_models_pytorch": _segmentation, "pytorchcv": _pytorchcv,
    "spandrel": _spandrel, "diffusers": _diffusers, "doctr": _doctr, "efficientnet_pytorch": _efficientnet,
    "monai": _attributes_of("monai.networks.nets"), "facenet_pytorch": _attributes_of("facenet_pytorch"),
    "kornia": _attributes_of("kornia"), "torchaudio": _attributes_of("torchaudio.models"),
}
"""A library's name -> what builds its networks of a name and options."""


def _networks() -> Iterator[Network]:
    for name in _YOLOS.split():
        yield Network(f"ultralytics:{name}", "Ultralytics", (3, 64, 64) if name.endswith("cls") else (3, 160, 160))
    for name in (*_DECODERS.split(), *(f"Unet/{encoder}" for encoder in _ENCODERS.split())):
        options = {"decoder_attention_type": None} if "/" in name else {}
        side = 128 if name == "PAN" else 64
        yield Network(f"segmentation_models_pytorch:{name}", "segmentation_models_pytorch", (3, side, side), None,
                      options)
    for name, (size, options) in _MONAI.items():
        yield Network(f"monai:{name}", "MONAI", size, None, options)
    for names, usual in ((_PYTORCHCV, 224), (_PYTORCHCV_SMALL, 32)):
        for name in names.split():
            side = 299 if name.startswith(("xception", "inception")) else usual
            yield Network(f"pytorchcv:{name}", "pytorchcv", (3, side, side))
    for name, side in _PYTORCHCV_MAPS.items():
        options = {"in_size": (side, side)}
        yield Network(f"pytorchcv:{name}", "pytorchcv", (3, side, side), None, options)
    for name, options in _SPANDREL.items():
        channels = 1 if name.startswith(("DnCNN", "DRUNet")) else 3
        yield Network(f"spandrel:{name}", "spandrel", (channels, 64, 64), None, options)
    for name, (size, options) in _DIFFUSERS.items():
        yield Network(f"diffusers:{name}", "diffusers", size, None, options)
    for name, (size, options) in _OTHERS.items():
        yield Network(name, "kornia, docTR, facenet-pytorch, efficientnet-pytorch, torchaudio", size, None, options)


FIELD = tuple(network for network in _networks() if find_spec(network.name.partition(":")[0]) is not None)
"""Those whose library is installed."""
