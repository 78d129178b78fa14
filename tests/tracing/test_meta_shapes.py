"""Shapes known at sight are torch's own, or torch is asked."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from torchslim.tracing.meta_shapes import infer_on_meta

ROWS, MAP, WHOLE = torch.rand(2, 5, 8), torch.rand(2, 3, 4, 5), torch.arange(1, 5)


ORDERS = {
    "contiguous": lambda x: x, "half of the channels": lambda x: x[:, :2], "half of the columns": lambda x: x[..., ::2],
    "one channel": lambda x: x[:, 1:2], "one place": lambda x: x[..., 1:2, 1:2], "one picture": lambda x: x[:1],
    "one of all": lambda x: x[:1, :1, :1, :1], "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "a channel, channels last": lambda x: x.to(memory_format=torch.channels_last)[:, :1],
    "turned": lambda x: x.transpose(2, 3), "expanded": lambda x: x[:, :1].expand(2, 4, 4, 4)}


@pytest.mark.parametrize(("name", "args", "known"), [
    ("native_layer_norm", (ROWS, [8], torch.rand(8), None, 1e-5), True),
    ("native_layer_norm", (ROWS, [5, 8], None, None, 1e-5), True),
    ("native_layer_norm", (ROWS.mT, [5], None, None, 1e-5), False),
    ("grid_sampler_2d", (MAP, torch.rand(2, 6, 7, 2), 0, 0, False), True),
    ("clamp", (MAP, 0, 1), True),
    ("clamp", (MAP, None, MAP), False),
    ("div", (MAP, 2), True),
    ("div", (MAP, MAP[:, :1].clone()), True),
    ("div", (WHOLE, WHOLE), False),
    ("bmm", (ROWS, ROWS.mT), True),
    ("bmm", (ROWS, ROWS), False),
    ("mm", (ROWS[0].mT, ROWS[1]), True),
    ("convolution", (MAP[:, :2], torch.rand(6, 2, 3, 3), None, [1, 2], [1, 1], [1, 1], False, [0, 0], 1), True),
    ("convolution", (MAP.mT, torch.rand(6, 3, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), False),
    ("relu", (ROWS,), True),
    ("relu", (ROWS.mT,), True),
    ("sub", (MAP, MAP[0]), True),
    ("mul", (MAP[0], MAP), True),
    ("_softmax", (ROWS, 1, False), True),
    ("_softmax", (ROWS.mT, 1, False), True),
    ("upsample_nearest2d", (MAP, [7, 3], 1.7, None), True),
    ("upsample_nearest2d", (MAP, None, [2.0, 1.3]), True),
    ("upsample_nearest2d", (MAP.to(memory_format=torch.channels_last), None, [2.0, 2.0]), False),
    ("upsample_bilinear2d", (MAP, [7, 3], False, None, None), True),
    ("upsample_bilinear2d", (MAP, None, True, [1.9, 2.1]), True),
    ("log", (MAP,), True),
    ("neg", (WHOLE,), False),
    ("cat", ([ROWS.mT, ROWS.mT], 1), True),
    ("cat", ([MAP.mT, MAP.mT], 1), False),
    ("stack", ([MAP, MAP], -1), True),
    ("stack", ([MAP, MAP], 4), True),
    ("stack", ([ROWS, ROWS], 1), True),
    ("stack", ([ROWS.mT, ROWS.mT], 1), False),
    ("stack", ([ROWS[0].mT, ROWS[0].mT], -1), True),
    ("stack", ([MAP, MAP.double()],), False),
    ("max_pool2d_with_indices", (MAP, [2], [], [0]), True),
    ("max_pool2d_with_indices", (MAP[0], [3, 2], [2, 1], [1, 0], [1, 1], True), True),
    ("max_pool2d_with_indices", (MAP.to(memory_format=torch.channels_last), [2, 2]), False),
])
def test_what_is_known_at_sight_is_what_torch_returns(name: str, args: tuple[Any, ...], known: bool) -> None:
    given = infer_on_meta(f"aten.{name}", tuple(tree_map_only(Tensor, lambda t: t.to("meta"), args)))
    assert (given is not None) == known
    if known:
        assert described(given) == described(getattr(torch.ops.aten, name)(*args))


@pytest.mark.parametrize("ceil", [False, True])
def test_windows_of_every_size_are_counted(ceil: bool) -> None:
    """Each size with each kernel, stride, padding and dilation, as torch does it; what it refuses is left to it."""
    for size, kernel, stride, padding, dilation in product((4, 5, 7, 12), (1, 2, 3), (1, 2, 3), (0, 1), (1, 2)):
        args = ([kernel], [stride], [padding], [dilation], ceil)
        given = infer_on_meta("aten.max_pool2d_with_indices", (torch.empty(1, 2, size, 9, device="meta"), *args))
        try:
            wanted = torch.ops.aten.max_pool2d_with_indices(torch.ones(1, 2, size, 9), *args)
        except RuntimeError:
            assert given is None
        else:
            assert described(given) == described(wanted)


def described(result: Any) -> list[Any]:
    return [(t.shape, t.dtype, t.stride()) for t in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("order", ORDERS)
def test_memory_orders_of_one_tensor(order: str) -> None:
    given = infer_on_meta("aten.relu", (ORDERS[order](torch.empty(2, 4, 4, 4, device="meta")),))
    assert described(given) == described(torch.ops.aten.relu(ORDERS[order](torch.ones(2, 4, 4, 4))))


def test_what_torch_refuses_is_left_to_torch() -> None:
    other_batch = torch.rand(1, 6, 7, 2).to("meta")
    assert infer_on_meta("aten.grid_sampler_2d", (MAP.to("meta"), other_batch, 0, 0, False)) is None
    assert infer_on_meta("aten.native_layer_norm", (ROWS.to("meta"), [7], None, None, 1e-5)) is None


@pytest.mark.parametrize("name", ["add", "div"])
@pytest.mark.parametrize("first", ORDERS)
def test_memory_orders_of_two_tensors(name: str, first: str) -> None:
    """Whatever is known of two tensors, one of which may be repeated, is what torch makes of them."""
    for second in ORDERS.values():
        on_meta, real = ((ORDERS[first](x), second(x)) for x in (torch.empty(2, 4, 4, 4, device="meta"),
                                                                 torch.ones(2, 4, 4, 4)))
        try:
            wanted = getattr(torch.ops.aten, name)(*real)
        except RuntimeError:  # widths that do not fit
            assert infer_on_meta(f"aten.{name}", on_meta) is None
        else:
            assert described(infer_on_meta(f"aten.{name}", on_meta)) == described(wanted)
