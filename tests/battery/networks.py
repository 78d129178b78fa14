"""The networks of torchvision and timm that are cut: one a family."""

CONVOLUTIONAL = """
    torchvision:alexnet torchvision:squeezenet1_0 torchvision:regnet_x_400mf
    timm:test_byobnet timm:repvgg_a0 timm:gernet_s timm:cs3darknet_focus_s timm:darknet17
    timm:cspnext_tiny timm:dla46x_c timm:dpn48b timm:test_efficientnet timm:mixnet_s timm:tinynet_e timm:fbnetc_100
    timm:fasternet_t0 timm:fastvit_t8 timm:ghostnet_050 timm:hardcorenas_b timm:hgnetv2_b0 timm:hrnet_w18_small
    timm:lcnetv2_small timm:mobilenetv3_small_050 timm:lcnet_035 timm:mobilenetv4_conv_small_035 timm:regnetx_002
    timm:regnety_002 timm:repghostnet_050 timm:repvit_m1 timm:resnest14d timm:test_resnet timm:resnetv2_18
    timm:selecsls42 timm:legacy_seresnet18 timm:skresnet18 timm:starnet_s050 timm:ese_vovnet19b_slim_dw
"""

# Norms and attention mix channels, which are left alone: what is cut around them may not come to a quarter.
HYBRID = """
    torchvision:convnext_tiny timm:test_convnext timm:edgenext_xx_small timm:efficientvit_b0 timm:efficientvim_m1
    timm:inception_next_atto timm:iformer_t timm:test_mambaout timm:poolformerv2_s12 timm:mobilevitv2_050
    timm:swiftformer_xs timm:test_vit
"""

# Of torchvision, name: an image side that the architecture takes (Inception's auxiliary head wants all of 299)
SIDES = {
    "vgg11": 64, "vgg16_bn": 64, "resnet18": 64, "resnet50": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64,
    "mobilenet_v3_large": 64, "efficientnet_b0": 64, "densenet121": 64, "inception_v3": 299, "googlenet": 64,
    "shufflenet_v2_x0_5": 64, "shufflenet_v2_x1_0": 64, "resnext50_32x4d": 64, "regnet_y_400mf": 64,
    "mnasnet0_5": 64, "squeezenet1_1": 64,
}
