"""Run a model and leave it as it was: attributes, registries, buffers, training mode and random state."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

Space = dict[str, Any]


@contextmanager
def preserved(modules: Iterable[nn.Module], state: Iterable[tuple[str, str, Tensor]],
              keep_contents: bool) -> Iterator[None]:
    """Put attributes, registries, the random state and what the tensors are back, whatever happens inside.

    Args:
        modules: those of a model.
        state: its tensors, as `named_tensors` has them.
        keep_contents: also keep the elements of parameters, buffers and attributes, which the run may write into.
    """
    spaces: list[Space] = []
    for module in modules:
        spaces += [module.__dict__, module._parameters, module._buffers, module._modules]
    saved = [(space, dict(space)) for space in spaces]
    # Lists and dicts are changed in place; a module's own registries are spaces by themselves.
    registries = {id(space) for space in spaces}
    inner = [(item, item.copy()) for space in spaces[::4] for item in space.values()
             if (type(item) is list or type(item) is dict) and id(item) not in registries]
    tensors = list({id(tensor): tensor for _, _, tensor in state}.values())
    learning = [(tensor, tensor.requires_grad) for tensor in tensors if isinstance(tensor, nn.Parameter)]
    with _disable_current_modes():  # a mode around the run, such as one that converts tensors, has no say in this
        memory = [(tensor, tensor.data) for tensor in tensors if tensor.layout is torch.strided]
        contents = [(tensor, data.clone()) for tensor, data in memory if keep_contents]
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)
            for space, before in saved:
                if not _same(space, before):
                    space.clear()
                    space.update(before)
            for item, copy in inner:
                if list(map(id, _parts(item))) != list(map(id, _parts(copy))):
                    item.clear()
                    item.extend(copy) if isinstance(item, list) else item.update(copy)
            for tensor, data in memory:
                if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                    tensor.data = data
            for parameter, learns in learning:
                if parameter.requires_grad != learns:
                    parameter.requires_grad_(learns)
            with torch.no_grad(), _disable_current_modes():
                for tensor, content in contents:
                    # Batch norm in train mode writes without counting a version.
                    if not torch.equal(tensor, content):
                        tensor.copy_(content)


def _same(space: Space, before: Space) -> bool:
    """The same keys with the very same values."""
    if not before:  # most registries are empty
        return not space
    return len(space) == len(before) and list(map(id, space.values())) == list(map(id, before.values()))


def _parts(item: list[Any] | Space) -> Iterator[Any]:
    yield from item
    if isinstance(item, dict):
        yield from item.values()


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Run attention as products and softmax: fused kernels hide what is inside, and which is taken can change."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class WholeRecurrences(TorchFunctionMode):
    """Dispatch a call of a recurrent layer or cell as one operation, such as `aten.lstm`.

    Otherwise torch takes it apart before any dispatch mode sees it: into thousands of products, or into a fused kernel,
    by device and precision.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _RECURRENCES:
            return func(*args, **kwargs) if kwargs else func(*args)
        with torch._C._AutoDispatchBelowAutograd():  # it is taken apart where autograd would come in
            return _RECURRENCES[func](*args, **kwargs or {})


_RECURRENCES = {getattr(torch, name + cell): getattr(torch.ops.aten, name + cell)
                for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")}


@contextmanager
def plain_context() -> Iterator[None]:
    """Run as if nothing were around the call: no autograd, no inference mode, no autocast.

    Attention is taken apart, and recurrent layers stay whole, whatever the device and precision.
    """
    with (torch.inference_mode(False), torch.no_grad(), unfused_attention(), WholeRecurrences(),
          ExitStack() as stack):
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
