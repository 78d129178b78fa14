"""Shapes known at sight are torch's own, or torch is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torchslim.tracing.meta_shapes import infer_on_meta

ROWS, MAP, WHOLE = torch.rand(2, 5, 8), torch.rand(2, 3, 4, 5), torch.arange(1, 5)


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
    ("relu", (ROWS,), True),
    ("relu", (ROWS.mT,), True),
])
def test_what_is_known_at_sight_is_what_torch_returns(name: str, args: tuple[Any, ...], known: bool) -> None:
    given = infer_on_meta(f"aten.{name}", tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args))
    assert (given is not None) == known
    if known:
        assert described(given) == described(getattr(torch.ops.aten, name)(*args))


def described(result: Any) -> list[Any]:
    return [(t.shape, t.dtype, t.stride()) for t in (result if isinstance(result, tuple) else (result,))]


def test_what_torch_refuses_is_left_to_torch() -> None:
    other_batch = torch.rand(1, 6, 7, 2).to("meta")
    assert infer_on_meta("aten.grid_sampler_2d", (MAP.to("meta"), other_batch, 0, 0, False)) is None
    assert infer_on_meta("aten.native_layer_norm", (ROWS.to("meta"), [7], None, None, 1e-5)) is None


ORDERS = {
    "contiguous": lambda x: x, "half of the channels": lambda x: x[:, :2], "half of the columns": lambda x: x[..., ::2],
    "one channel": lambda x: x[:, 1:2], "one place": lambda x: x[..., 1:2, 1:2], "one picture": lambda x: x[:1],
    "one of all": lambda x: x[:1, :1, :1, :1], "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "a channel, channels last": lambda x: x.to(memory_format=torch.channels_last)[:, :1],
    "turned": lambda x: x.transpose(2, 3), "expanded": lambda x: x[:, :1].expand(2, 4, 4, 4)}


@pytest.mark.parametrize("name", ["add", "div"])
@pytest.mark.parametrize("first", ORDERS)
def test_memory_orders_of_two_tensors(name: str, first: str) -> None:
    """Whatever is known of two tensors, one of which may be repeated, is what torch makes of them."""
    known = 0
    for second in ORDERS.values():
        on_meta, real = ([ORDERS[first](x), second(x)] for x in (torch.empty(2, 4, 4, 4, device="meta"),
                                                                 torch.ones(2, 4, 4, 4)))
        try:
            wanted = getattr(torch.ops.aten, name)(*real)
        except RuntimeError:  # widths that do not fit
            assert infer_on_meta(f"aten.{name}", tuple(on_meta)) is None
            continue
        given = infer_on_meta(f"aten.{name}", tuple(on_meta))
        known += given is not None
        assert given is None or described(given) == described(wanted)
    assert known
