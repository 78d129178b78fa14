"""How every layer and function of torch is put between two convolutions; `benchmarks/functions.py` cuts each of them.

A row is Python: of a layer its arguments, and its call where that is not `m(x)`; of a function the call. `x` has 16
channels and 12x12 positions: 12 where the name ends in 1d, 4x6x6 where it ends in 3d. `p(8, 16)` is a parameter of that
shape, `tokens(x)` has a token for each position, `maps(y)` makes maps of tokens. Names without a row match `APART`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
import torch.nn.utils.prune  # no attribute of torch.nn.utils until it is imported
from torch import nn

MADE_FOR = (2, 14)
"""The newest version of torch whose names were gone through."""

_PLAIN = """CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU
    ReLU6 SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Softmax2d AlphaDropout FeatureAlphaDropout
    Dropout Dropout1d Dropout2d Dropout3d"""
_BY_DIMS = {  # of one, two and three dimensions
    "AdaptiveAvgPool": "(4)", "AdaptiveMaxPool": "(4)", "AvgPool": "(2)", "MaxPool": "(2)", "LPPool": "(2, 2)",
    "BatchNorm": "(16)", "InstanceNorm": "(16, affine=True)", "CircularPad": "(1)", "ConstantPad": "(1, 0.5)",
    "ReflectionPad": "(1)", "ReplicationPad": "(1)", "ZeroPad": "(1)", "Conv": "(16, 8, 3)",
    "ConvTranspose": "(16, 8, 3)", "LazyBatchNorm": "()", "LazyInstanceNorm": "()", "LazyConv": "(8, 3)",
    "LazyConvTranspose": "(8, 3)"}
_ENCODER, _DECODER = "maps(m(tokens(x)))", "maps(m(tokens(x), tokens(x)))"

LAYERS: dict[str, str | tuple[str, str]] = {
    **dict.fromkeys(_PLAIN.split(), "()"),
    **{f"{name}{dims}d": arguments for name, arguments in _BY_DIMS.items() for dims in (1, 2, 3)},
    "Bilinear": ("(16, 16, 8)", _DECODER), "ChannelShuffle": "(4)", "CrossMapLRN2d": "(5)", "LocalResponseNorm": "(5)",
    "CosineSimilarity": ("(3)", "x * m(x, x + 1).unsqueeze(3)"),
    "PairwiseDistance": ("()", "x * m(x, x + 1).unsqueeze(3)"),
    "Embedding": ("(9, 16)", "x * m(torch.tensor([1, 2]))[:, :, None, None]"),
    "EmbeddingBag": ("(9, 16)", "x * m(torch.tensor([[1, 2], [3, 4]]))[:, :, None, None]"),
    "Flatten": ("(2)", "m(x).unsqueeze(3)"), "Unflatten": ("(1, (4, 4))", "m(x).flatten(1, 2)"),
    "Fold": ("((12, 12), 2, stride=2)", "m(F.unfold(x, 2, stride=2))"),
    "Unfold": ("(3, padding=1)", "m(x).unflatten(2, (12, 12))"),
    "FractionalMaxPool2d": "(2, output_size=6)", "FractionalMaxPool3d": "(2, output_size=2)", "GLU": "(1)",
    "GroupNorm": "(4, 16)", "LayerNorm": ("(16)", _ENCODER), "RMSNorm": ("(16)", _ENCODER), "SyncBatchNorm": "(16)",
    "Linear": ("(16, 8)", _ENCODER), "LazyLinear": ("(8)", _ENCODER),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), ("(16, 8, batch_first=True)", "maps(m(tokens(x))[0])")),
    **dict.fromkeys(("GRUCell", "RNNCell"), ("(16, 16)", "x * m(x.mean((2, 3)))[:, :, None, None]")),
    "LSTMCell": ("(16, 16)", "x * m(x.mean((2, 3)))[0][:, :, None, None]"),
    "Softmax": "(3)", "LogSoftmax": "(3)", "Softmin": "(3)", "Threshold": "(0.1, 0.0)",
    **{f"MaxUnpool{dims}d": ("(2)", f"m(*F.max_pool{dims}d(x, 2, return_indices=True))") for dims in (1, 2, 3)},
    "MultiheadAttention": ("(16, 4, batch_first=True)", "maps(m(tokens(x), tokens(x), tokens(x))[0])"),
    "PixelShuffle": "(2)", "PixelUnshuffle": "(2)",
    "TransformerEncoderLayer": ("(16, 4, 32, batch_first=True)", _ENCODER),
    "TransformerDecoderLayer": ("(16, 4, 32, batch_first=True)", _DECODER),
    "TransformerEncoder": ("(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1)", _ENCODER),
    "TransformerDecoder": ("(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1)", _DECODER),
    "Transformer": ("(16, 4, 1, 1, 32, batch_first=True)", _DECODER),
    "Upsample": "(scale_factor=2, mode='bilinear')", "UpsamplingBilinear2d": "(scale_factor=2)",
    "UpsamplingNearest2d": "(scale_factor=2)",
}

_OF_X = """celu celu_ elu elu_ gelu hardshrink hardsigmoid hardswish hardtanh hardtanh_ leaky_relu leaky_relu_
    logsigmoid mish relu relu6 relu_ rrelu rrelu_ selu selu_ sigmoid silu softplus softshrink softsign tanh tanhshrink
    normalize instance_norm"""
_POOLS = {"adaptive_avg_pool": "4", "adaptive_max_pool": "4", "avg_pool": "2", "max_pool": "2", "lp_pool": "2, 2"}

FUNCTIONS: dict[str, str] = {
    **{name: f"F.{name}(x)" for name in _OF_X.split()},
    **{f"{name}{dims}d": f"F.{name}{dims}d(x, {given})" for name, given in _POOLS.items() for dims in (1, 2, 3)},
    **{f"{name}{dims}d_with_indices": f"F.{name}{dims}d_with_indices(x, {given})[0]"
       for name, given in (("max_pool", "2"), ("adaptive_max_pool", "4")) for dims in (1, 2, 3)},
    **{f"max_unpool{dims}d": f"F.max_unpool{dims}d(*F.max_pool{dims}d(x, 2, return_indices=True), 2)"
       for dims in (1, 2, 3)},
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
    "conv_tbc": "F.conv_tbc(x.mean(3).permute(2, 0, 1).contiguous(), p(3, 16, 8), p(8)).permute(1, 2, 0).unsqueeze(3)",
    "linear": "maps(F.linear(tokens(x), p(8, 16)))", "bilinear": "maps(F.bilinear(tokens(x), tokens(x), p(8, 16, 16)))",
    "prelu": "F.prelu(x, p(16))", "glu": "F.glu(x, 1)", "one_hot": "x * F.one_hot(x.argmax(3), 12)",
    "batch_norm": "F.batch_norm(x, None, None, p(16), p(16), training=True)", "group_norm": "F.group_norm(x, 4)",
    "layer_norm": "F.layer_norm(x, x.shape[1:])", "rms_norm": "F.rms_norm(x, x.shape[1:])",
    "local_response_norm": "F.local_response_norm(x, 5)", "pad": "F.pad(x, (1, 1, 1, 1))",
    "affine_grid": "F.grid_sample(x, F.affine_grid(p(2, 2, 3), x.shape, False), align_corners=False)",
    "grid_sample": "F.grid_sample(x, p(2, 6, 6, 2), align_corners=False)",
    "interpolate": "F.interpolate(x, scale_factor=2, mode='bicubic')", "upsample": "F.upsample(x, scale_factor=2)",
    **{f"upsample_{mode}": f"F.upsample_{mode}(x, scale_factor=2)" for mode in ("bilinear", "nearest")},
    "pixel_shuffle": "F.pixel_shuffle(x, 2)", "pixel_unshuffle": "F.pixel_unshuffle(x, 2)",
    "channel_shuffle": "F.channel_shuffle(x, 4)", "native_channel_shuffle": "F.native_channel_shuffle(x, 4)",
    "fold": "F.fold(F.unfold(x, 2, stride=2), (12, 12), 2, stride=2)",
    "unfold": "F.unfold(x, 3, padding=1).unflatten(2, (12, 12))", "pdist": "x * F.pdist(x.flatten(1))",
    "cosine_similarity": "x * F.cosine_similarity(x, x + 1, 3).unsqueeze(3)",
    "pairwise_distance": "x * F.pairwise_distance(x, x + 1).unsqueeze(3)",
    "embedding": "x * F.embedding(torch.tensor([1, 2]), p(9, 16))[:, :, None, None]",
    "embedding_bag": "x * F.embedding_bag(torch.tensor([[1, 2], [3, 4]]), p(9, 16))[:, :, None, None]",
    "scaled_dot_product_attention": "maps(F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x)))",
}

_SPECTRA = {**dict.fromkeys(("fft", "fft2", "ifft", "ifft2", "rfft", "rfft2", "ihfft"), ""),
            **dict.fromkeys(("fftn", "ifftn", "rfftn"), ", dim=(2, 3)")}
FOURIER: dict[str, str] = {
    **{name: f"torch.fft.{name}(x{given}).abs()" for name, given in _SPECTRA.items()},
    "irfft": "torch.fft.irfft(torch.fft.rfft(x))", "irfft2": "torch.fft.irfft2(torch.fft.rfft2(x))",
    "irfftn": "torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3)), dim=(2, 3))",
    "hfft": "torch.fft.hfft(torch.fft.ihfft(x))", "fftfreq": "x * torch.fft.fftfreq(12)",
    "fftshift": "torch.fft.fftshift(x, (2, 3))", "ifftshift": "torch.fft.ifftshift(x, (2, 3))",
    "rfftfreq": "torch.fft.rfft(x).abs() * torch.fft.rfftfreq(12)",
}

UTILITIES: dict[str, str] = {
    **dict.fromkeys(("weight_norm", "spectral_norm", *(f"parametrizations.{name}" for name in (
        "weight_norm", "spectral_norm", "orthogonal"))), "(nn.Conv2d(16, 8, 3))"),
    "prune.l1_unstructured": "(nn.Conv2d(16, 8, 3), 'weight', 0.3)",
}

_ALONG_SPACE = "amax amin argmax argmin logsumexp mean nanmean nansum norm std sum var"
METHODS: tuple[str, ...] = (
    *(f"x + x.{name}(dim=3, keepdim=True)" for name in _ALONG_SPACE.split()),
    "x * x.prod(3, keepdim=True)", "x + x.count_nonzero(3).unsqueeze(3)", "x * x.mean()",
    "x * x.mean(1, keepdim=True)", "x * x.amax(1, keepdim=True)",
    "x * x.norm(dim=1, keepdim=True)", "x * x.argmax(1, keepdim=True)",
    "x + x.argsort(3)", *(f"x.{name}(dim=3)" for name in ("cumprod", "cumsum", "diff", "logcumsumexp")),
    *(f"x.{name}(3)[0]" for name in ("cummax", "cummin", "sort")),
    *(f"x + x.{name}(3, keepdim=True)[0]" for name in ("median", "mode", "nanmedian", "max", "min")),
    "x.cumsum(1)", "x.sort(1)[0]", "x.cummax(1)[0]", "x.topk(4, 3)[0]", "x.topk(8, 1)[0]",
    "x.kthvalue(2, 3, True)[0] + x",
    "x + x.quantile(0.5, 3, keepdim=True)", "x - x.aminmax(dim=3, keepdim=True)[0]", "x * x.histc(4).sum()",
    "x - torch.std_mean(x, 3, keepdim=True)[1]", "torch.trapezoid(x, dim=3).unsqueeze(3)",
    "x.clamp(0, 1)", "x.where(x > 0, -x)", "torch.lerp(x, x.tanh(), 0.3)", "torch.atan2(x, x + 1)", "x.nan_to_num()",
    "torch.addcmul(x, x, x)", "x.masked_fill(x > 1, 0)", "torch.heaviside(x, torch.zeros(())) * x",
    "torch.bucketize(x, torch.tensor([0.0, 1.0])) + x", "torch.searchsorted(torch.tensor([0.0, 1.0]), x) + x",
    "x * torch.isin(x, torch.zeros(2))",
    "x.flip(3)", "x.flip(1)", "x.roll(1, 3)", "x.roll(1, 1)", "x.rot90(1, (2, 3))", "x.tril()", "x.triu()",
    "x.diagonal(dim1=2, dim2=3).unsqueeze(3)", "x.mT", "x.swapaxes(2, 3)", "x.movedim(1, 3).relu().movedim(3, 1)",
    "x.unflatten(1, (4, -1)).flatten(1, 2)", "x.unflatten(1, (4, 4)).flatten(1, 2)", "x.unfold(2, 3, 3).mean(4)",
    "x.repeat(1, 2, 1, 1)", "x.tile(1, 1, 1, 2)", "x.repeat_interleave(2, 3)", "x.repeat_interleave(2, 1)",
    "torch.cat(x.chunk(2, 1)[::-1], 1)", "torch.cat(x.tensor_split(2, 1), 1)",
    "torch.cat([x[:, :4], x[:, 4:].relu()], 1)",
    "torch.stack([x, x.relu()], 1).flatten(1, 2)", "torch.hstack([x, x])", "x[:, ::2]", "x[:, :, 2:]",
    "x[:, [3, 1, 2]]",
    "x.index_select(3, torch.tensor([1, 2]))", "x.gather(3, x.argsort(3))", "x.gather(1, x.argsort(1))",
    "x + x.take_along_dim(x.argmax(3, keepdim=True), 3)", "x.index_add(3, torch.tensor([0]), x[..., :1])",
    "x.index_fill(3, torch.tensor([1]), 0.0)", "x.scatter_add(3, torch.zeros_like(x, dtype=torch.long), x)",
    "x @ x.mT", "x @ p(12, 12)", "torch.cdist(x, x)",
    "torch.cdist(tokens(x), tokens(x)).mean(1).unflatten(1, (1, 12, 12)) * x",
    "torch.einsum('nchw,nchv->ncwv', x, x)", "torch.einsum('nchw,dc->ndhw', x, p(8, 16))",
    "torch.einsum('nchh->nc', x)[..., None, None] * x",
    "torch.einsum('nchw,ndhw->ncd', x, x).mean((1, 2))[:, None, None, None] * x",
    "torch.kron(x, torch.ones(1, 1, 2, 2))", "torch.linalg.cross(x[..., :3], x[..., 3:6], dim=3)",
    "x * torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)", "x * torch.linalg.matrix_norm(x)[..., None, None]",
    "torch.linalg.inv(x @ x.mT + torch.eye(12))", "x * torch.linalg.svdvals(x)[..., None]",
    "x.renorm(2, 1, 1.0)", "x.renorm(2, 0, 1.0)",
    "torch.view_as_real(torch.view_as_complex(x.unflatten(3, (6, 2)).contiguous())).flatten(3)",
    "torch.polar(x.abs(), x).real", "torch.fft.fft(x, dim=1).abs()", "x + torch.randn_like(x)",
    "x * torch.rand(16, 1, 1)",
)


_LOSS = "a loss: it compares outputs with targets"
APART: dict[str, str] = {
    "nn.*Loss*": _LOSS, "F.*loss*": _LOSS, "F.*cross_entropy*": _LOSS, "F.kl_div": _LOSS,
    **dict.fromkeys(("nn.Container", "nn.Module*", "nn.Parameter*", "nn.Sequential"), "holds others, computes nothing"),
    "nn.DataParallel": "runs copies of a module on several GPUs; the module inside is cut",
    **dict.fromkeys(("nn.RNNBase", "nn.RNNCellBase"), "what recurrent layers are derived from"),
    "F.multi_head_attention_forward": "what `nn.MultiheadAttention` calls",
    "F.scaled_mm": "for eight-bit numbers on GPUs", "F.*grouped_mm": "for eight- or sixteen-bit numbers on GPUs",
    **dict.fromkeys(("F.*torch_function*", "F.assert_int_or_pair", "F.boolean_dispatch"), "no operation on tensors"),
}


def names() -> list[str]:
    """Every layer of `torch.nn` and every function of `torch.nn.functional` and `torch.fft` of the installed torch."""
    found = {"nn": [name for name, item in vars(nn).items() if inspect.isclass(item) and issubclass(item, nn.Module)],
             "F": [name for name, item in vars(nn.functional).items() if inspect.isroutine(item) and name[0] != "_"],
             "torch.fft": [name for name in torch.fft.__all__ if inspect.isroutine(getattr(torch.fft, name))]}
    return [f"{home}.{name}" for home, members in found.items() for name in sorted(members)]


def reason_apart(name: str) -> str | None:
    """Why a name stands between no convolutions; None if it may."""
    return next((reason for pattern, reason in APART.items() if fnmatchcase(name, pattern)), None)


def rows() -> Mapping[str, tuple[str, str]]:
    """By name, all rows: how the layer is made (empty for a function), and the call."""
    layers = {f"nn.{name}": row if isinstance(row, tuple) else (row, "m(x)") for name, row in LAYERS.items()}
    layers |= {f"nn.utils.{name}": (arguments, "m(x)") for name, arguments in UTILITIES.items()}
    functions = {f"F.{name}": call for name, call in FUNCTIONS.items()}
    functions |= {f"torch.fft.{name}": call for name, call in FOURIER.items()} | {call: call for call in METHODS}
    return {name: (f"{name}{arguments}", call) for name, (arguments, call) in layers.items()} | {
        name: ("", call) for name, call in functions.items()}
