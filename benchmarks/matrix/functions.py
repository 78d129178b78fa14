"""How every layer and function of torch is put between two convolutions; `benchmarks/functions.py` cuts each of them.

A row is Python: of a module its arguments, and how it is called where `m(x)` isn't it; of a function the call. `x` has 16
channels and 12x12 positions; 12 positions where the name ends in 1d, 4x6x6 where it ends in 3d. `tokens(x)` makes a
token of each position, `maps(y)` makes a map of them again. Names that are in no row match a pattern of `APART`.
"""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase

import torch
from torch import nn

MADE_FOR = (2, 14)
"""The newest version of torch whose names were gone through."""

_PLAIN = ("CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 "
          "SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Softmax2d AlphaDropout FeatureAlphaDropout Dropout "
          "Dropout1d Dropout2d Dropout3d")
_BY_DIMS = {  # of one, two and three dimensions
    "AdaptiveAvgPool": "(4)", "AdaptiveMaxPool": "(4)", "AvgPool": "(2)", "MaxPool": "(2)", "LPPool": "(2, 2)",
    "BatchNorm": "(16)", "InstanceNorm": "(16, affine=True)", "CircularPad": "(1)", "ConstantPad": "(1, 0.5)",
    "ReflectionPad": "(1)", "ReplicationPad": "(1)", "ZeroPad": "(1)", "Conv": "(16, 8, 3)",
    "ConvTranspose": "(16, 8, 3)", "LazyBatchNorm": "()", "LazyInstanceNorm": "()", "LazyConv": "(8, 3)",
    "LazyConvTranspose": "(8, 3)"}

MODULES: dict[str, str | tuple[str, str]] = {
    **dict.fromkeys(_PLAIN.split(), "()"),
    **{f"{name}{dims}d": arguments for name, arguments in _BY_DIMS.items() for dims in (1, 2, 3)},
    "Bilinear": ("(16, 16, 8)", "maps(m(tokens(x), tokens(x)))"), "ChannelShuffle": "(4)",
    "CosineSimilarity": ("(3)", "x * m(x, x + 1).unsqueeze(3)"), "CrossMapLRN2d": "(5)",
    "Embedding": ("(9, 16)", "x * m(torch.tensor([1, 2]))[:, :, None, None]"),
    "EmbeddingBag": ("(9, 16)", "x * m(torch.tensor([[1, 2], [3, 4]]))[:, :, None, None]"),
    "Flatten": ("(2)", "m(x).unsqueeze(3)"), "Unflatten": ("(1, (4, 4))", "m(x).flatten(1, 2)"),
    "Fold": ("((12, 12), 2, stride=2)", "m(F.unfold(x, 2, stride=2))"), "Unfold": ("(3, padding=1)", "m(x).unflatten(2, (12, 12))"),
    "FractionalMaxPool2d": "(2, output_size=6)", "FractionalMaxPool3d": "(2, output_size=2)", "GLU": "(1)",
    "GroupNorm": "(4, 16)", "LayerNorm": ("(16)", "maps(m(tokens(x)))"), "RMSNorm": ("(16)", "maps(m(tokens(x)))"),
    "LocalResponseNorm": "(5)", "SyncBatchNorm": "(16)",
    "Linear": ("(16, 8)", "maps(m(tokens(x)))"), "LazyLinear": ("(8)", "maps(m(tokens(x)))"),
    **{name: ("(16, 8, batch_first=True)", "maps(m(tokens(x))[0])") for name in ("GRU", "LSTM", "RNN")},
    **{name: ("(16, 16)", "x * m(x.mean((2, 3)))[:, :, None, None]") for name in ("GRUCell", "RNNCell")},
    "LSTMCell": ("(16, 16)", "x * m(x.mean((2, 3)))[0][:, :, None, None]"),
    "Softmax": "(3)", "LogSoftmax": "(3)", "Softmin": "(3)", "Threshold": "(0.1, 0.0)",
    **{f"MaxUnpool{dims}d": ("(2)", f"m(*F.max_pool{dims}d(x, 2, return_indices=True))") for dims in (1, 2, 3)},
    "MultiheadAttention": ("(16, 4, batch_first=True)", "maps(m(tokens(x), tokens(x), tokens(x))[0])"),
    "PairwiseDistance": ("()", "x * m(x, x + 1).unsqueeze(3)"), "PixelShuffle": "(2)", "PixelUnshuffle": "(2)",
    **{f"Transformer{name}Layer": ("(16, 4, 32, batch_first=True)", f"maps(m({call}))")
       for name, call in (("Encoder", "tokens(x)"), ("Decoder", "tokens(x), tokens(x)"))},
    "TransformerEncoder": ("(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1)", "maps(m(tokens(x)))"),
    "TransformerDecoder": ("(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1)", "maps(m(tokens(x), tokens(x)))"),
    "Transformer": ("(16, 4, 1, 1, 32, batch_first=True)", "maps(m(tokens(x), tokens(x)))"),
    "Upsample": "(scale_factor=2, mode='bilinear')", "UpsamplingBilinear2d": "(scale_factor=2)",
    "UpsamplingNearest2d": "(scale_factor=2)",
}

_OF_X = ("celu celu_ elu elu_ gelu hardshrink hardsigmoid hardswish hardtanh hardtanh_ leaky_relu leaky_relu_ logsigmoid mish "
         "relu relu6 relu_ rrelu rrelu_ selu selu_ sigmoid silu softplus softshrink softsign tanh tanhshrink normalize")
_POOLS = {"adaptive_avg_pool": "4", "adaptive_max_pool": "4", "avg_pool": "2", "max_pool": "2", "lp_pool": "2, 2"}
_TAKEN = "F.max_pool{0}d(x, 2, return_indices=True)"

FUNCTIONS: dict[str, str] = {
    **{name: f"F.{name}(x)" for name in _OF_X.split()},
    **{f"{name}{dims}d": f"F.{name}{dims}d(x, {given})" for name, given in _POOLS.items() for dims in (1, 2, 3)},
    **{f"{name}{dims}d_with_indices": f"F.{name}{dims}d_with_indices(x, {given})[0]"
       for name, given in (("max_pool", "2"), ("adaptive_max_pool", "4")) for dims in (1, 2, 3)},
    **{f"max_unpool{dims}d": f"F.max_unpool{dims}d(*{_TAKEN.format(dims)}, 2)" for dims in (1, 2, 3)},
    **{f"fractional_max_pool{dims}d": f"F.fractional_max_pool{dims}d(x, 2, 2)" for dims in (2, 3)},
    **{f"fractional_max_pool{dims}d_with_indices": f"F.fractional_max_pool{dims}d_with_indices(x, 2, 2)[0]"
       for dims in (2, 3)},
    **{name: f"F.{name}(x, training=False)" for name in (
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")},
    **{name: f"F.{name}(x, 3)" for name in ("softmax", "softmin", "log_softmax")},
    "gumbel_softmax": "F.gumbel_softmax(x, dim=3)",
    **{name: f"F.{name}(x, 0.1, 0.0)" for name in ("threshold", "threshold_")},
    **{f"conv{dims}d": f"F.conv{dims}d(x, p(8, 16{', 3' * dims}))" for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": f"F.conv_transpose{dims}d(x, p(16, 8{', 3' * dims}))" for dims in (1, 2, 3)},
    "conv_tbc": "F.conv_tbc(x.flatten(2).permute(2, 0, 1).contiguous(), p(3, 16, 8), p(8)).permute(1, 2, 0).unsqueeze(3)",
    "linear": "maps(F.linear(tokens(x), p(8, 16)))", "bilinear": "maps(F.bilinear(tokens(x), tokens(x), p(8, 16, 16)))",
    "prelu": "F.prelu(x, p(16))", "glu": "F.glu(x, 1)", "one_hot": "x * F.one_hot(x.argmax(3), 12)",
    "batch_norm": "F.batch_norm(x, p(16), p(16).exp())", "instance_norm": "F.instance_norm(x)",
    "group_norm": "F.group_norm(x, 4)", "layer_norm": "F.layer_norm(x, x.shape[1:])", "rms_norm": "F.rms_norm(x, x.shape[1:])",
    "local_response_norm": "F.local_response_norm(x, 5)", "pad": "F.pad(x, (1, 1, 1, 1))",
    "affine_grid": "F.grid_sample(x, F.affine_grid(p(2, 2, 3), x.shape, False), align_corners=False)",
    "grid_sample": "F.grid_sample(x, p(2, 6, 6, 2), align_corners=False)",
    "interpolate": "F.interpolate(x, scale_factor=2, mode='bicubic')", "upsample": "F.upsample(x, scale_factor=2)",
    "upsample_bilinear": "F.upsample_bilinear(x, scale_factor=2)", "upsample_nearest": "F.upsample_nearest(x, scale_factor=2)",
    "pixel_shuffle": "F.pixel_shuffle(x, 2)", "pixel_unshuffle": "F.pixel_unshuffle(x, 2)",
    "channel_shuffle": "F.channel_shuffle(x, 4)", "native_channel_shuffle": "F.native_channel_shuffle(x, 4)",
    "fold": "F.fold(F.unfold(x, 2, stride=2), (12, 12), 2, stride=2)", "unfold": "F.unfold(x, 3, padding=1).unflatten(2, (12, 12))",
    "cosine_similarity": "x * F.cosine_similarity(x, x + 1, 3).unsqueeze(3)", "pdist": "x * F.pdist(x.flatten(1))",
    "pairwise_distance": "x * F.pairwise_distance(x, x + 1).unsqueeze(3)",
    "embedding": "x * F.embedding(torch.tensor([1, 2]), p(9, 16))[:, :, None, None]",
    "embedding_bag": "x * F.embedding_bag(torch.tensor([[1, 2], [3, 4]]), p(9, 16))[:, :, None, None]",
    "scaled_dot_product_attention": "maps(F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x)))",
}

_SPECTRA = {"fft": "", "fft2": "", "fftn": "dim=(2, 3)", "rfft": "", "rfft2": "", "rfftn": "dim=(2, 3)", "ifft": "", "ifft2": "",
            "ifftn": "dim=(2, 3)", "ihfft": ""}
FOURIER: dict[str, str] = {
    **{name: f"torch.fft.{name}(x{given and ', '}{given}).abs()" for name, given in _SPECTRA.items()},
    "irfft": "torch.fft.irfft(torch.fft.rfft(x))", "hfft": "torch.fft.hfft(torch.fft.ihfft(x))",
    "irfft2": "torch.fft.irfft2(torch.fft.rfft2(x))", "irfftn": "torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3)), dim=(2, 3))",
    "fftshift": "torch.fft.fftshift(x, (2, 3))", "ifftshift": "torch.fft.ifftshift(x, (2, 3))",
    "fftfreq": "x * torch.fft.fftfreq(12)", "rfftfreq": "torch.fft.rfft(x).abs() * torch.fft.rfftfreq(12)",
}

_LOSS = "a loss: it compares outputs with targets"
APART: dict[str, str] = {
    "nn.*Loss*": _LOSS, "F.*loss*": _LOSS, "F.*cross_entropy*": _LOSS, "F.kl_div": _LOSS,
    **dict.fromkeys(("nn.Container", "nn.Module*", "nn.Parameter*", "nn.Sequential"), "holds others, and computes nothing"),
    "nn.DataParallel": "runs copies of a module on several GPUs; the module inside is cut",
    **dict.fromkeys(("nn.RNNBase", "nn.RNNCellBase"), "what layers above are derived from"),
    "F.multi_head_attention_forward": "what `nn.MultiheadAttention` calls",
    "F.scaled_mm": "for eight-bit numbers on GPUs", "F.*grouped_mm": "for eight- or sixteen-bit numbers on GPUs",
    **dict.fromkeys(("F.*torch_function*", "F.assert_int_or_pair", "F.boolean_dispatch"), "no operation on tensors"),
}


def names() -> list[str]:
    """Every layer of `torch.nn`, every function of `torch.nn.functional` and `torch.fft` in the torch installed."""
    modules = [name for name, item in vars(nn).items() if inspect.isclass(item) and issubclass(item, nn.Module)]
    functions = [name for name, item in vars(nn.functional).items() if inspect.isroutine(item) and name[0] != "_"]
    fourier = [name for name in torch.fft.__all__ if inspect.isroutine(getattr(torch.fft, name))]
    return [*(f"nn.{name}" for name in sorted(modules)), *(f"F.{name}" for name in sorted(functions)),
            *(f"torch.fft.{name}" for name in fourier)]


def apart(name: str) -> str | None:
    """Why a name stands between no convolutions; None if it may."""
    return next((reason for pattern, reason in APART.items() if fnmatchcase(name, pattern)), None)
