"""Floating-point operations beside the multiply-adds: norms, activations, pooling, arithmetic.

What is counted is the arithmetic that the definition asks for, whatever a kernel makes of it:

    arithmetic, activations, comparisons    1 an output element, however hard the function is; lerp 3, addcmul 2
    pooling, reductions                     1 an element that a window reads; variance 3, norms of vectors 2
    products with a vector                  2 an element of the first factor; they have no MACs, as torch counts
    batch norm                              2 an output element, scale and shift; 4 more with statistics of the batch
    layer and group norm                    5 an element, 7 with weight and bias
    softmax                                 5 an element: largest, difference, exponential, sum, quotient
    recurrent layers                        13 a hidden unit and step, GRU 10, plain RNN 2: gates and states
    resizing, sampling                      2 taps - 1 an output element: bilinear 7, bicubic 31, nearest 0

Moving, copying, selecting and filling cost none. A complex number counts as one number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

from torchslim.rules.recurrent import recurrence
from torchslim.tracing.graph import Op

Count = Callable[[Op], int]


def each(times: int) -> Count:
    """So many operations an output element."""
    return lambda op: times * op.output.numel


def read(times: int) -> Count:
    """So many operations an element of the first input."""
    return lambda op: times * op.inputs[0].numel


def batch_norm(op: Op) -> int:
    """Scale and shift; where no running statistics are given, mean and variance are of the batch."""
    of_the_batch = op.argument(3, "running_mean") is None
    return (6 if of_the_batch else 2) * op.inputs[0].numel


def norm(position: int) -> Count:
    """Mean, variance, difference and quotient; then a weight and a bias, if the argument at `place` is one."""
    return lambda op: (5 if op.argument(position, "weight") is None else 7) * op.inputs[0].numel


def pooling(op: Op) -> int:
    """aten.avg_pool2d(x, kernel, ...), max_pool2d_with_indices: each window reads as many elements as its kernel has.

    Padding counts, too.
    """
    kernel = op.argument(1, "kernel_size")
    dims = int(op.name.split("pool")[1][0])
    return int(op.output.numel * (prod(kernel) if len(kernel) > 1 else kernel[0] ** dims))


def adaptive_pooling(op: Op) -> int:
    """Windows that tile the map, and overlap where sizes do not divide."""
    x, out = op.inputs[0], op.output
    dims = int(op.name.split("pool")[1][0])
    windows = prod(sum(ceil((i + 1) * size / bins) - i * size // bins for i in range(bins))
                   for size, bins in zip(x.shape[-dims:], out.shape[-dims:], strict=True))
    return int(prod(x.shape[:-dims]) * windows)


def resized(taps: int, antialias: bool = False) -> Count:
    """Interpolation of `taps` neighbours in each dimension; antialiased, of as many more as the map gets smaller."""

    def count(op: Op) -> int:
        x, out = op.inputs[0], op.output
        dims = len(out.shape) - 2
        scales = [max(1.0, a / b) if antialias else 1.0 for a, b in zip(x.shape[2:], out.shape[2:], strict=True)]
        return int(out.numel * (2 * prod(ceil(taps * scale) for scale in scales[:dims]) - 1))

    return count


def sampled(op: Op) -> int:
    """aten.grid_sampler_2d(x, grid, mode, ...): mode 0 linear, 1 nearest, 2 cubic."""
    taps = {0: 2, 1: 0, 2: 4}[op.argument(2, "interpolation_mode", 0)]
    return int(op.output.numel * (2 * taps ** (len(op.output.shape) - 2) - 1)) if taps else 0


def regions(op: Op) -> int:
    """torchvision.roi_align(x, boxes, scale, h, w, sampling_ratio, aligned): bilinear samples, averaged.

    Where the number of samples follows the size of the boxes (a ratio of 0 or less), one a bin is counted.
    """
    samples = max(1, op.argument(5, "sampling_ratio", -1)) ** 2
    return int(op.output.numel * samples * 8)


def gates(times: int) -> Count:
    """So many operations a hidden unit of a recurrent layer, and step."""

    def count(op: Op) -> int:
        layer = recurrence(op)
        return times * layer.units * layer.steps

    return count


def _each(names: Sequence[str], count: Count) -> dict[str, Count]:
    return {f"aten.{name}": count for name in names}


COUNTS: dict[str, Count] = {
    **_each(("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
             "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update"), batch_norm),
    "aten.native_layer_norm": norm(2),
    "aten.native_group_norm": norm(1),
    **_each(("_softmax", "_log_softmax", "_safe_softmax"), each(5)),
    **_each(("lerp",), each(3)),
    **_each(("addcmul", "addcdiv"), each(2)),
    **_each(("where", "copy", "masked_fill", "fill", "logical_or", "logical_and", "logical_not", "bitwise_and",
             "bitwise_or", "bitwise_not"), each(0)),
    **_each(("mean", "sum", "amax", "amin", "max", "min", "prod", "argmax", "argmin", "cumsum", "logsumexp"), read(1)),
    **_each(("var", "std", "var_mean", "std_mean"), read(3)),
    **_each(("linalg_vector_norm", "norm", "mv", "dot", "vdot"), read(2)),
    "aten._weight_norm_interface": read(3),
    **_each(("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"), pooling),
    **_each(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
            adaptive_pooling),
    **_each(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), resized(2)),
    **_each(("upsample_bicubic2d",), resized(4)),
    **_each(("_upsample_bilinear2d_aa",), resized(2, antialias=True)),
    **_each(("_upsample_bicubic2d_aa",), resized(4, antialias=True)),
    **_each(("grid_sampler_2d", "grid_sampler_3d"), sampled),
    "torchvision.roi_align": regions,
    **_each(("lstm", "lstm_cell"), gates(13)),
    **_each(("gru", "gru_cell"), gates(10)),
    **_each(("rnn_tanh", "rnn_relu", "rnn_tanh_cell", "rnn_relu_cell"), gates(2)),
}

POINTWISE: Count = each(1)
