"""Run a model once and write down what it did: model + inputs -> Graph.

The only file that knows torch's dispatch internals. The run is made on the meta device first: activations have
shapes and no data, parameters are stood in for one by one as operations ask for them, and nothing is computed. Where
the control flow reads data (`.item()`, `nonzero`, non-maximum suppression) or an operation has no meta form, the model
runs again for real. Either way nothing stays on the model: module attributes, buffers, training mode and random state
are put back, after exceptions too.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from torchslim.calling import Inputs, arguments, map_tensors, tensors_in, unwrap
from torchslim.errors import TraceError
from torchslim.graph import Graph, Op, Value


class _NeedsData(Exception):
    """The meta run met an operation whose result depends on data."""


# Operations whose result, or its shape, depends on the data of their arguments.
_READS_DATA = frozenset({
    "aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero",
    "aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.bincount", "aten.repeat_interleave",
    "torchvision.nms", "aten._assert_async",
})


def trace(model: nn.Module, inputs: Inputs, *, training: bool = False, meta: bool | None = None) -> Graph:
    """The tape of one run of `model`.

    Args:
        model: any module; compiled and data-parallel wrappers are looked through.
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        training: run in train mode, which is possible on the meta device only (batch-norm statistics stay untouched).
        meta: run on the meta device alone (True) or for real alone (False); by default for real where meta fails.

    Raises:
        TraceError: the model itself fails on these inputs.
        UnsupportedModel: scripted modules.
    """
    model = unwrap(model)
    args, kwargs = arguments(inputs)
    held_on_meta = any(t.is_meta for t in (*tensors_in((args, kwargs)), *model.parameters()))
    if meta is not False:
        try:
            return _run(model, args, kwargs, training, meta=True)
        except TraceError:
            # Anything may go wrong on shapes without data; what the model does for real is what counts.
            if training or held_on_meta or meta:
                raise
    return _run(model, args, kwargs, training, meta=False)


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool, meta: bool) -> Graph:
    names = {module: name for name, module in reversed(list(model.named_modules()))}
    recorder = _Recorder(model, names, meta)
    with _untouched(model, keep_buffers=not meta), torch.no_grad(), plain_attention():
        # Not model.train(): a user's override of it may do more than set the flag.
        for module in names:
            module.training = training
        if meta:
            args, kwargs = map_tensors(_to_meta, args), map_tensors(_to_meta, kwargs)
        recorder.take_inputs((args, kwargs))
        with recorder.module_names(), recorder:
            try:
                output = model(*args, **kwargs)
            except Exception as error:
                message = (str(error).strip() or type(error).__name__).splitlines()[0]
                failure = TraceError(
                    f"`{recorder.failed_in or 'model'}` failed while the model was run on the given inputs: "
                    f"{type(error).__name__}: {message}; check the inputs' shapes, dtype and device with a plain call "
                    "of the model")
                failure.ops = tuple(recorder.ops)
                raise failure from error
    return recorder.graph(output, training)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta", requires_grad=False)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes each dispatched operation down, and on the meta device replaces real tensors by their shapes."""

    def __init__(self, model: nn.Module, names: Mapping[nn.Module, str], meta: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meta = meta
        self.names = names
        self.stack: list[str] = []
        self.failed_in = ""
        self.calls: dict[str, int] = {}
        self.ops: list[Op] = []
        self.count = 0
        # Tensors are known by identity. Each is kept alive here, or its id could be given to another.
        self.known: dict[int, tuple[Tensor, Value]] = {}
        self.stand_ins: dict[int, Tensor] = {}
        self.originals: dict[int, Tensor] = {}
        self.state: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        self.inputs: tuple[Value, ...] = ()
        self._take_state(model)

    def _take_state(self, model: nn.Module) -> None:
        kinds: tuple[tuple[str, Iterator[tuple[str, Tensor]]], ...] = (
            ("parameter", model.named_parameters(remove_duplicate=False)),
            ("buffer", model.named_buffers(remove_duplicate=False)),
            ("attribute", _tensor_attributes(model)),
        )
        for kind, entries in kinds:
            for name, tensor in entries:
                found = self.known.get(id(tensor))
                if found is not None:
                    self.aliases[name] = found[1].name
                else:
                    self.state[name] = self._new(tensor, kind, name=name, static=True)

    def take_inputs(self, tree: Any) -> None:
        """Make the given tensors the run's inputs."""
        self.inputs = tuple(self._new(tensor, "input") for tensor in tensors_in(tree))

    def _new(self, tensor: Tensor, source: str, name: str = "", static: bool = False) -> Value:
        value = Value(self.count, tuple(tensor.shape), tensor.dtype, source, name, static)
        self.count += 1
        self.known[id(tensor)] = (tensor, value)
        return value

    def _value(self, tensor: Tensor) -> Value:
        found = self.known.get(id(tensor))
        return found[1] if found is not None else self._new(tensor, "constant", static=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read: list[Value] = []

        def note(tensor: Tensor) -> Value:
            value = self._value(tensor)
            read.append(value)
            return value

        noted_args = _map(note, args)
        noted_kwargs = {key: _map(note, (item,))[0] for key, item in kwargs.items()} if kwargs else kwargs
        result = self._on_meta(func, args, kwargs) if self.meta else func(*args, **kwargs)
        static = all(value.static for value in read)
        outputs = tuple(self._output(tensor, static) for tensor in _flat(result))
        if outputs:
            self.ops.append(Op(len(self.ops), operation_name(func), func, noted_args, noted_kwargs, outputs,
                               self.stack[-1] if self.stack else ""))
        return result

    def _output(self, tensor: Tensor | None, static: bool) -> Value | None:
        if tensor is None:
            return None
        found = self.known.get(id(tensor))
        # An in-place operation returns its argument: the same value, unless its shape has changed.
        if found is not None and found[1].shape == tuple(tensor.shape):
            return found[1]
        return self._new(tensor, "operation", static=static)

    def _on_meta(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [t for t in _flat((*args, *kwargs.values())) if t is not None]
        persistent = any(found[1].name for t in tensors if (found := self.known.get(id(t))) is not None)
        if tensors and not persistent and not any(t.is_meta for t in tensors):
            return func(*args, **kwargs)  # plain constants: their data may matter, and costs little
        if operation_name(func) in _READS_DATA and tensors:
            raise _NeedsData(f"{func} reads data")
        meta_args = _map(self._stand_in, args)
        short = _SHORT_CUTS.get(operation_name(func))
        result = short(*meta_args) if short is not None and not kwargs else None
        if result is None:
            result = func(*meta_args, **{key: _map(self._stand_in, (item,))[0] for key, item in kwargs.items()})
        # In-place operations on a stood-in tensor must give the tensor itself back to the model.
        return _map(lambda t: self.originals.get(id(t), t), (result,))[0]

    def _stand_in(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        found = self.stand_ins.get(id(tensor))
        if found is None:
            self._value(tensor)  # keeps it alive
            found = self.stand_ins[id(tensor)] = torch.empty_like(tensor, device="meta", requires_grad=False)
            self.originals[id(found)] = tensor
        return found

    @contextmanager
    def module_names(self) -> Iterator[None]:
        """Attribute operations to the innermost running module, by hooks that are gone afterwards."""
        thread = threading.get_ident()

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread and module in self.names:
                self.stack.append(self.names[module])
                self.failed_in = self.stack[-1]
                self.calls[self.failed_in] = self.calls.get(self.failed_in, 0) + 1

        def leave(module: nn.Module, _args: Any, output: Any) -> None:
            if threading.get_ident() == thread and module in self.names and self.stack:
                self.stack.pop()
                if output is not None:  # it has not failed
                    self.failed_in = self.stack[-1] if self.stack else ""

        handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def graph(self, output: Any, training: bool) -> Graph:
        """The finished tape."""
        outputs = tuple(self._value(tensor) for tensor in tensors_in(output))
        modules = {name: type(module).__name__ for module, name in self.names.items()}
        return Graph(tuple(self.ops), self.inputs, outputs, self.state, self.aliases, modules, self.calls, training,
                     "meta" if self.meta else "real")


def operation_name(func: Any) -> str:
    """The name of a torch operation without its overload, such as "aten.convolution"."""
    return str(func._schema.name).replace("::", ".")


def _map(function: Callable[[Tensor], Any], items: Any) -> Any:
    """`function` over the tensors of an argument list; lists inside become tuples, so that a tape can't be changed."""
    out = []
    for item in items:
        if isinstance(item, Tensor):
            item = function(item)
        elif isinstance(item, list | tuple) and any(isinstance(part, Tensor) for part in item):
            item = type(item)(function(part) if isinstance(part, Tensor) else part for part in item)
        out.append(item)
    return tuple(out)


def _flat(tree: Any) -> list[Tensor | None]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [tensor for item in tree for tensor in _flat(item)]
    return []


def _same_shape(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _in_place(x: Tensor, *_: Any) -> Tensor:
    return x


def _batch_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    empty = x.new_empty((0,))
    return torch.empty_like(x), empty, empty


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    if not all(t.dim() == first.dim() and t.is_contiguous() for t in tensors):
        return None  # legacy empty tensors and other memory formats: torch knows best
    if any(t.shape[d] != first.shape[d] for t in tensors for d in range(first.dim()) if d != dim % first.dim()):
        return None  # torch words the error
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return first.new_empty(shape)


# Meta kernels written in Python cost more than the operation they stand for; these shapes are known at sight.
_SHORT_CUTS: dict[str, Callable[..., Any]] = {
    "aten.native_batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten.cat": _cat,
    **{f"aten.{name}": _same_shape for name in ("relu", "silu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid",
                                                "gelu", "leaky_relu", "elu", "tanh", "mish")},
    **{f"aten.{name}_": _in_place for name in ("relu", "silu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid",
                                               "leaky_relu", "elu", "tanh", "mish")},
}


def _tensor_attributes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Plain tensors that modules hold as attributes: constants that their authors did not register."""
    for prefix, module in model.named_modules():
        for key, item in module.__dict__.items():
            if isinstance(item, Tensor):
                yield (f"{prefix}.{key}" if prefix else key), item


@contextmanager
def _untouched(model: nn.Module, keep_buffers: bool) -> Iterator[None]:
    """Put attributes, registries, buffer contents and the random state back, whatever happens inside."""
    spaces: list[dict[str, Any]] = []
    for module in model.modules():
        spaces += [module.__dict__, module._parameters, module._buffers, module._modules]
    saved = [(space, dict(space), {key: item.copy() for key, item in space.items() if type(item) in (list, dict)})
             for space in spaces]
    contents = [(b, b.detach().clone()) for b in model.buffers()] if keep_buffers else []
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)
            for space, before, copies in saved:
                _put_back(space, before, copies)
            with torch.no_grad():
                for buffer, content in contents:
                    # Batch norm in train mode writes without counting a version.
                    if not torch.equal(buffer, content):
                        buffer.copy_(content)


def _put_back(space: dict[str, Any], before: dict[str, Any], copies: dict[str, Any]) -> None:
    if len(space) != len(before) or any(space.get(key) is not item for key, item in before.items()):
        space.clear()
        space.update(before)
    for key, copy in copies.items():
        item = space[key]
        if item is before[key] and item is not space and list(map(id, _parts(item))) != list(map(id, _parts(copy))):
            item.clear()
            item.extend(copy) if isinstance(item, list) else item.update(copy)


def _parts(item: list[Any] | dict[Any, Any]) -> Iterator[Any]:
    yield from item
    if isinstance(item, dict):
        yield from item.values()


@contextmanager
def plain_attention() -> Iterator[None]:
    """Run attention as products and softmax: fused kernels hide what is inside, and which is taken can change."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
