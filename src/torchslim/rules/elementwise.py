"""Arithmetic and activations: the labels at one position become one."""

from __future__ import annotations

from torchslim.rules.broadcasting import alias, broadcast_union, inherit_repeats
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.tracing.graph import Op, Value
from torchslim.tracing.undispatched import ASSIGNED

# Operations that join branches. A product does not: it is how gates (squeeze-excite) act.
_JOINING = frozenset({"aten.add", "aten.add_", "aten.sub", "aten.sub_", "aten.maximum", "aten.minimum", "aten.lerp",
                      "aten.addcmul"})


def pointwise(space: LabelSpace, op: Op) -> None:
    """Any element-wise operation of any number of tensors."""
    values = [value for value in op.inputs if value.numel != 1]  # tensors without elements carry labels as well
    if not values:
        return
    tracks = broadcast_union(space, values, op)
    moving = {value.id for value in values if not value.static and space.tracks(value)}
    if op.name in _JOINING and len(moving) > 1:
        space.declared.joined_branches.extend(tracks)
    for out in op.outputs:
        if out is not None:
            space.set(out, tracks)
            inherit_repeats(space, out, values)


def passing(space: LabelSpace, op: Op) -> None:
    """Every result of the first tensor's shape has its labels (dropout, copies)."""
    first = op.inputs[0]
    for out in op.outputs:
        if out is not None and out.shape == first.shape:
            alias(space, out, first)


def aliased(space: LabelSpace, op: Op) -> None:
    """A tensor of the same elements in the same memory."""
    alias(space, op.output, op.inputs[0])


def replaced(space: LabelSpace, op: Op) -> None:
    """aten.set_(x, source), `x.data = source`: x becomes another name of the source; a parameter is cut with it."""
    x, source = op.inputs[0], op.inputs[-1]
    if source.shape != op.output.shape:
        space.freeze_value(source, f"read by strides in {op.where}")
    elif x.shape == source.shape and x.name:
        space.set(op.output, broadcast_union(space, [source, x], op))
    else:
        space.set(op.output, space.tracks(source))


def resized(space: LabelSpace, op: Op) -> None:
    """aten.resize_(x, size), often of a tensor without elements, which then holds arbitrary ones."""
    x = op.args[0]
    if x.numel == 0:
        space.fill(op.output)
    else:
        restrided(space, op)


def restrided(space: LabelSpace, op: Op) -> None:
    """as_strided_ that keeps the shape (how some kernels lay out their result); any other is no plain view."""
    x = op.args[0]
    if op.output.shape == x.shape:
        space.set(op.output, space.tracks(x))
    else:
        space.freeze_value(x, f"read by strides in {op.where}")


def blank(space: LabelSpace, op: Op) -> None:
    """A tensor of equal or arbitrary elements is cut with what it meets."""
    for out in op.outputs:
        if out is not None:
            space.fill(out)


def unlabeled(space: LabelSpace, op: Op) -> None:
    """A tensor whose elements differ by position, made from nothing: it can't be cut, and reads no channels."""


def like(space: LabelSpace, op: Op) -> None:
    """A new tensor shaped like another (zeros_like): cut with it."""
    source: Value = op.inputs[0]
    if source.shape == op.output.shape:
        space.set(op.output, space.tracks(source))
    else:
        space.fill(op.output)


def index_fill(space: LabelSpace, op: Op) -> None:
    """aten.index_fill(x, dim, positions, value): along other dimensions labels pass."""
    x, dim, positions = op.args[:3]
    space.freeze_value(positions, f"positions in {op.where}")
    for track in space.tracks(x):
        if track.shape[dim] > 1:
            space.freeze(track, f"written by position in {op.where}")
    space.set(op.output, space.tracks(x))


def looked_up(space: LabelSpace, op: Op) -> None:
    """bucketize(x, boundaries), searchsorted(boundaries, x), isin(x, elements): each element by itself, in a list."""
    values = [value for value in op.inputs if value.shape == op.output.shape]
    for value in op.inputs:
        if len(values) != 1 or value is not values[0]:
            space.freeze_value(value, f"compared as a whole in {op.where}")
    space.set(op.output, space.tracks(values[0]) if len(values) == 1 else ())


POINTWISE = Row(pointwise)

ROWS = {
    **{f"aten.{name}": POINTWISE for name in (
        "add", "sub", "mul", "div", "where", "copy", "_prelu_kernel", "masked_fill",
        "lerp", "addcmul", "addcdiv", "floor_divide", "remainder", "logical_or", "logical_and", "hardswish",
        "hardsigmoid", "hardtanh", "relu", "silu", "mish", "gelu", "leaky_relu", "elu", "sigmoid", "tanh",
        "softplus", "clamp", "pow", "threshold", "rsub", "rsqrt", "sqrt", "polar", "complex")},
    **{f"aten.{name}": Row(passing) for name in (
        "native_dropout", "clone", "_lazy_clone", "_to_copy", "lift", "lift_fresh", "lift_fresh_copy",
        "bernoulli", "fill", "zero", "_conj", "_neg_view", "uniform", "normal_", "normal_functional", "random",
        "exponential", "rrelu_with_noise", "rrelu_with_noise_functional", "log_sigmoid_forward")},
    **{f"aten.{name}": Row(looked_up) for name in ("bucketize", "searchsorted", "isin")},
    **{f"aten.{name}": Row(aliased) for name in ("alias", "detach")},
    "aten.set": Row(replaced),
    ASSIGNED: Row(replaced),
    **{f"aten.{name}": Row(resized) for name in ("resize", "resize_as")},
    "aten.as_strided": Row(restrided),
    "aten.index_fill": Row(index_fill),
    **{f"aten.{name}": Row(blank) for name in (
        "zeros", "ones", "empty", "full", "empty_strided", "empty_permuted", "scalar_tensor")},
    **{f"aten.{name}": Row(like) for name in (
        "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full",
        "rand_like", "randn_like", "randint_like", "new_empty_strided")},
    **{f"aten.{name}": Row(unlabeled) for name in (
        "arange", "linspace", "eye", "rand", "randn", "randint", "randperm", "logspace", "tril_indices",
        "triu_indices", "range", "bartlett_window", "blackman_window", "hamming_window", "hann_window",
        "kaiser_window")},
}
