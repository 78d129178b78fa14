"""Shapes known at sight: what some operations return on the meta device, without asking torch.

torch's meta kernels are often written in Python and cost more than the operation that they stand for. Each function
here takes an operation's arguments and returns what the operation would, with the right sizes, or None where torch
knows better (errors, unusual memory formats).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor


def infer_on_meta(name: str, args: tuple[Any, ...]) -> Any:
    """What an operation returns on meta tensors, or None where torch has to be asked."""
    function = _SHAPES.get(name)
    if function is None or not args:
        return None
    first = args[_FIRST.get(name, 0)]
    # Weights are real and stay so; what is computed of them alone is torch's business.
    on_meta = first.is_meta if isinstance(first, Tensor) else all(t.is_meta for t in first)
    return function(*args) if on_meta else None


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _like(x: Tensor) -> Tensor:
    """A new tensor of the same form; `torch.empty_like` is slower on the meta device, and first loads half of torch."""
    return _empty(x, x.shape) if x.is_contiguous() else _strided(x, x.shape, x)


def _strided(like: Tensor, shape: Sequence[int], *operands: Tensor) -> Tensor:
    """The result of an elementwise operation on these."""
    return torch.empty_strided(shape, _merged_strides(shape, *operands), dtype=like.dtype, device="meta")


def _same(x: Tensor, *_: Any) -> Tensor | None:
    return _like(x) if x.is_floating_point() else None


def _in_place(x: Tensor, *_: Any) -> Tensor:
    return x


def _batch_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _empty(x, (0,)), _empty(x, (0,))


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    if not all(t.dim() == first.dim() and t.dtype == first.dtype and _is_plain(t) for t in tensors):
        return None  # legacy empty tensors, promotion, other memory formats
    if any(t.shape[d] != first.shape[d] for t in tensors for d in range(first.dim()) if d != dim % first.dim()):
        return None
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return _empty(first, shape)


def _is_plain(x: Tensor) -> bool:
    """Whether its memory format is the usual one: only tensors of four and five dimensions may have another."""
    return x.dim() not in (4, 5) or _is_in_order(x)


def _stack(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    if not all(t.shape == first.shape and t.dtype == first.dtype and (t.dim() < 3 or _is_in_order(t))
               for t in tensors):
        return None
    place = dim + first.dim() + 1 if dim < 0 else dim
    return _empty(first, (*first.shape[:place], len(tensors), *first.shape[place:])) if (
        0 <= place <= first.dim()) else None


def _max_pool(x: Tensor, kernel: list[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
              dilation: Sequence[int] = (1,), ceil: bool = False) -> tuple[Tensor, Tensor] | None:
    def both(sizes: Sequence[int]) -> Sequence[int]:
        return sizes if len(sizes) == 2 else [*sizes] * 2

    maps = [_pooled(size, k, s, p, d, ceil) for size, k, s, p, d in zip(
        x.shape[-2:], both(kernel), both(stride or kernel), both(padding), both(dilation), strict=True)]
    if not x.is_contiguous() or x.dim() < 3 or any(2 * p > k for p, k in zip(both(padding), both(kernel), strict=True)):
        return None
    shape = (*x.shape[:-2], *maps)
    return (_empty(x, shape), torch.empty(shape, dtype=torch.int64, device="meta")) if min(shape) > 0 else None


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """The places of a window along one dimension; with `ceil` one may reach over the end, if it starts before it."""
    places = (size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1) * ceil) // stride + 1
    return places - (ceil and (places - 1) * stride >= size + padding)


def _upsampled(x: Tensor, sizes: Sequence[int] | None, *options: Any) -> Tensor | None:
    if x.dim() != 4 or not x.is_contiguous():
        return None
    factors = options[-1]
    if sizes is None and isinstance(factors, Sequence):
        sizes = [int(size * factor) for size, factor in zip(x.shape[2:], factors, strict=True)]
    return _empty(x, (*x.shape[:2], *sizes)) if sizes is not None and min(x.numel(), *sizes) > 0 else None


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
                 dilation: list[int], transposed: bool, _output_padding: list[int], groups: int) -> Tensor | None:
    width, spatial = x.shape[1:2], weight.dim() - 2
    if not transposed and weight.shape[0] % groups:  # torch's meta kernel lets this pass, its real ones do not
        raise RuntimeError(f"{weight.shape[0]} filters cannot be split into {groups} groups")
    if (transposed or x.dim() != weight.dim() or len(stride) != spatial or x.dtype != weight.dtype
            or not (_is_in_order(x) and weight.is_contiguous())):
        return None
    filters, read, *kernel = weight.shape
    if width[0] != read * groups or (bias is not None and bias.shape != (filters,)):
        return None
    sizes = [(size + 2 * p - d * (k - 1) - 1) // s + 1
             for size, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)]
    return _empty(x, (x.shape[0], filters, *sizes)) if min(sizes, default=0) > 0 else None


def _arithmetic(x: Tensor, y: Any) -> Tensor | None:
    if not isinstance(y, Tensor):
        return _like(x) if x.is_floating_point() else None
    if y.dtype != x.dtype:
        return None
    if y.shape == x.shape and y.stride() == x.stride():
        return _like(x)
    sizes = list(zip_longest(reversed(x.shape), reversed(y.shape), fillvalue=1))
    if not all(a == b or 1 in (a, b) for a, b in sizes):
        return None
    shape = [b if a == 1 else a for a, b in reversed(sizes)]
    if _is_in_order(x) and _is_in_order(y):
        return _empty(x, shape)
    return _strided(x, shape, x, y)


def _is_in_order(x: Tensor) -> bool:
    """Whether the memory has the order of the dimensions: contiguous tensors and slices of these."""
    return x.is_contiguous() or all(a >= b > 0 for a, b in pairwise(x.stride()))


def _merged_strides(shape: Sequence[int], *tensors: Tensor) -> list[int]:
    """The strides of the result of an elementwise operation: that of the first tensor that orders two dimensions.

    Source: TensorIterator's `reorder_dimensions`, by an insertion sort from the last dimension to the first.
    """
    strides = [[0] * (len(shape) - t.dim()) + [stride if size == whole else 0 for stride, size, whole in zip(
        t.stride(), t.shape, shape[len(shape) - t.dim():], strict=True)] for t in tensors]

    def comparison(first: int, second: int) -> int:
        for one in strides:
            a, b = one[first], one[second]
            if a and b and (a != b or shape[first] > shape[second]):
                return -1 if a < b else 1
        return 0

    order = list(reversed(range(len(shape))))
    for end in range(1, len(order)):
        at = end
        for before in reversed(range(end)):
            compared = comparison(order[before], order[at])
            if compared > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif compared < 0:
                break
    result, step = [0] * len(shape), 1
    for dim in order:
        result[dim], step = step, step * shape[dim]
    return result


def _quotient(x: Tensor, y: Any) -> Tensor | None:
    return _arithmetic(x, y) if x.is_floating_point() else None


def _mm(x: Tensor, y: Tensor) -> Tensor | None:
    fits = x.dtype == y.dtype and x.shape[-1] == y.shape[-2] and x.shape[:-2] == y.shape[:-2]
    return _empty(x, (*x.shape[:-1], y.shape[-1])) if fits else None


def _addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    fits = (x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[0] and x.dtype == weight.dtype == bias.dtype
            and bias.shape == weight.shape[1:])
    return _empty(x, (x.shape[0], weight.shape[1])) if fits else None


def _layer_norm(x: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None,
                _eps: float) -> tuple[Tensor, Tensor, Tensor] | None:
    fits = x.is_contiguous() and x.shape[x.dim() - len(sizes):] == tuple(sizes) and all(
        t is None or (t.shape == tuple(sizes) and t.dtype == x.dtype) for t in (weight, bias))
    statistic = (*x.shape[:x.dim() - len(sizes)], *[1] * len(sizes))
    return (_like(x), _empty(x, statistic), _empty(x, statistic)) if fits else None


def _grid_sampler(x: Tensor, grid: Tensor, *_: Any) -> Tensor | None:
    fits = x.dim() == grid.dim() == 4 and (grid.shape[0], grid.shape[3]) == (x.shape[0], 2) and x.dtype == grid.dtype
    return _empty(x, (*x.shape[:2], *grid.shape[1:3])) if fits else None


def _softmax(x: Tensor, _dim: int, half_to_float: bool) -> Tensor | None:
    return None if half_to_float or not x.is_floating_point() else _empty(x, x.shape)


def _clamp(x: Tensor, *bounds: Any) -> Tensor | None:
    return None if any(isinstance(bound, Tensor) for bound in bounds) else _same(x)


def _mean(x: Tensor, dims: list[int] | None = None, keep: bool = False) -> Tensor | None:
    if not dims or not x.is_contiguous() or not x.is_floating_point():
        return None
    gone = {dim % x.dim() for dim in dims}
    return _empty(x, [1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone])


def _recurrent(gates: int, x: Tensor, hx: Any, params: list[Tensor], biases: Any, layers: int, _dropout: float,
               _train: bool, bidirectional: bool, batch_first: bool = False) -> tuple[Tensor, ...] | None:
    if not isinstance(biases, bool):  # of packed sequences: their sizes are data
        return None
    states, cells = hx if isinstance(hx, list | tuple) else (hx,), layers * (1 + bidirectional)
    width, units, read, wanted = states[0].shape[-1], states[-1].shape[-1], x.shape[-1], list[tuple[int, ...]]()
    for _ in range(layers):
        cell = [(gates * units, read), (gates * units, width), *[(gates * units,)] * (2 * biases), (width, units)]
        wanted += cell[:len(params) // cells] * (1 + bidirectional)
        read = width * (1 + bidirectional)
    batch = x.shape[0 if batch_first else 1]
    if len(states) > 1 and (width != units) != (len(wanted[-1]) == 2 and len(params) // cells > 2):
        return None  # a projection to as many units as there are: torch would take it for none
    fits = ([tuple(p.shape) for p in params] == wanted and all(p.dtype == x.dtype for p in (*params, *states))
            and all(state.shape[:-1] == (cells, batch) for state in states))
    return (_empty(x, (*x.shape[:-1], read)), *(_empty(x, state.shape) for state in states)) if fits else None


def _recurrent_cell(gates: int, x: Tensor, hx: Any, into: Tensor, hidden: Tensor, *biases: Tensor | None) -> Any:
    states = hx if isinstance(hx, list | tuple) else (hx,)
    (batch, units), rows = states[0].shape, (gates * states[0].shape[-1],)
    fits = (into.shape == (*rows, x.shape[-1]) and hidden.shape == (*rows, units) and x.shape[:-1] == (batch,)
            and all(bias is None or bias.shape == rows for bias in biases)
            and all(state.shape == (batch, units) for state in states)
            and all(t is None or t.dtype == x.dtype for t in (into, hidden, *biases, *states)))
    results = tuple(_empty(x, state.shape) for state in states)
    return None if not fits else results if len(states) > 1 else results[0]


_ACTIVATIONS = ("relu", "silu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "leaky_relu", "elu", "tanh", "mish")
_ELEMENTWISE = ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "erf")
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

_SHAPES: dict[str, Callable[..., Any]] = {
    "aten.native_batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten.cat": _cat,
    "aten.convolution": _convolution,
    "aten.stack": _stack,
    "aten.max_pool2d_with_indices": _max_pool,
    "aten.add": _arithmetic,
    "aten.sub": _arithmetic,
    "aten.rsub": _arithmetic,
    "aten.mul": _arithmetic,
    "aten.div": _quotient,
    "aten.clamp": _clamp,
    "aten.grid_sampler_2d": _grid_sampler,
    "aten.native_layer_norm": _layer_norm,
    "aten.mm": _mm,
    "aten.bmm": _mm,
    "aten.addmm": _addmm,
    "aten.mean": _mean,
    "aten.gelu": _same,
    "aten._softmax": _softmax,
    "aten._log_softmax": _softmax,
    "aten.upsample_nearest2d": _upsampled,
    "aten.upsample_bilinear2d": _upsampled,
    **{f"aten.{name}": _same for name in _ACTIVATIONS + _ELEMENTWISE},
    **{f"aten.{name}_": _in_place for name in _ACTIVATIONS},
    **{f"aten.{name}": partial(_recurrent, gates) for name, gates in _GATES.items()},
    **{f"aten.{name}_cell": partial(_recurrent_cell, gates) for name, gates in _GATES.items()},
}

# Where the first argument that is no weight stands, if it is not the first of all.
_FIRST = {"aten.addmm": 1}
