"""Run a model once and write down what it did: model + inputs -> Graph.

The only file that knows torch's dispatch internals. The run is made on the meta device first: activations have
shapes and no data, parameters are stood in for one by one as operations ask for them, and nothing is computed. Where
the control flow reads data (`.item()`, `nonzero`, non-maximum suppression) or an operation has no meta form, the model
runs again for real. Either way nothing stays on the model: module attributes, buffers, training mode and random state
are put back, after exceptions too.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from torchslim.errors import TraceError, UnsupportedModel
from torchslim.tracing.arguments import flat, map_arguments, operation_name, written_tensors
from torchslim.tracing.graph import Graph, Op, Value
from torchslim.tracing.meta_shapes import infer_on_meta
from torchslim.tracing.undispatched import ASSIGNED, StateMemory, UndispatchedCalls, same_elements
from torchslim.tracing.width_reads import WidthReadDetector, reads_widths_otherwise
from torchslim.utils.dispatch import DispatchMode
from torchslim.utils.inputs import Inputs, arguments, map_tensors, tensors_in, unwrap, wrapped_network
from torchslim.utils.modules import named_tensors, names_of_modules
from torchslim.utils.preserve import plain_context, preserved

# Operations whose result, or its shape, depends on the data of their arguments.
_READS_DATA = frozenset({
    "aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero",
    "aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.bincount", "aten.repeat_interleave",
    "torchvision.nms", "aten._assert_async",
})

_HIGHER_ORDER = re.compile(r"HigherOrderOperator (\w+)")


def trace(model: nn.Module, inputs: Inputs, *, training: bool = False, meta: bool | None = None,
          detect_width_reads: bool = True) -> Graph:
    """The graph of one run of `model`.

    Args:
        model: any module; compiled and data-parallel wrappers are looked through.
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        training: run in train mode, which is possible on the meta device only (batch-norm statistics stay untouched).
        meta: run on the meta device alone (True) or for real alone (False); by default for real where meta fails.
        detect_width_reads: find out whether the model's code reads widths; without it the graph says that it may.

    Raises:
        TraceError: the model itself fails on these inputs.
        UnsupportedModel: scripted modules, lazy modules that have not been initialised, nested tensors.
    """
    model = unwrap(model)
    tensors = named_tensors(model)
    lazy = next((name for _, name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        raise UnsupportedModel(f"`{lazy}`: is not initialised; call the model once on real inputs first")
    call = arguments(inputs)
    if meta is not False:
        result = _run(model, tensors, *call, training, True, detect_width_reads)
        if isinstance(result, Graph):
            return result
        parameters = [tensor for kind, _, tensor in tensors if kind == "parameter"]
        # Anything may go wrong on shapes without data; what the model does for real is what counts.
        if meta or training or any(t.is_meta for t in (*tensors_in(call), *parameters)):
            raise result
    result = _run(model, tensors, *call, training, False, False)
    if isinstance(result, TraceError):
        raise result
    return result


def _run(model: nn.Module, tensors: Iterable[tuple[str, str, Tensor]], args: tuple[Any, ...], kwargs: dict[str, Any],
         training: bool, meta: bool, detect_width_reads: bool) -> Graph | TraceError:
    """The graph of one run, or why there is none: the model failed, or needs data on the meta device."""
    names = names_of_modules(model)
    detector = WidthReadDetector() if detect_width_reads else None
    recorder = _Recorder(tensors, names, meta, detector)
    output, error = None, None
    calls = UndispatchedCalls(recorder.assign, recorder.read_outside)
    with preserved(model, keep_contents=not meta), plain_context():
        # Not model.train(): a user's override of it may do more than set the flag.
        for module in names:
            if module.training != training:
                module.training = training
        if meta:
            args, kwargs = map_tensors(_to_meta, args), map_tensors(_to_meta, kwargs)
        recorder.add_inputs((args, kwargs))
        with recorder.module_names(), detector or nullcontext(), calls, recorder:
            try:
                output = model(*args, **kwargs)
                recorder.add_replaced(named_tensors(model))
            except Exception as exception:
                error = exception
    if error is not None or recorder.needs_data:
        return recorder.failure(error)
    width_independent = (detector is not None and not detector.first_width_read
                         and not reads_widths_otherwise(model, names, recorder.ops))
    return recorder.graph(output, training, width_independent)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta", requires_grad=False)


class _Recorder(DispatchMode):
    """Writes each dispatched operation down, and on the meta device replaces real tensors by their shapes."""

    def __init__(self, tensors: Iterable[tuple[str, str, Tensor]], names: Mapping[nn.Module, str], meta: bool,
                 detector: WidthReadDetector | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meta = meta
        self.detector = detector
        self.names = names
        self.stack: list[str] = []
        self.failed_in = ""
        self.needs_data = ""
        self.failed_args: tuple[Any, ...] = ()
        self.module_outputs: dict[str, list[tuple[Value, ...]]] = {}
        self.ops: list[Op] = []
        self.count = 0
        self.has_unregistered_parameters = False
        # Tensors are known by identity. Each is kept alive here, or its id could be given to another.
        self.known: dict[int, tuple[Tensor, Value]] = {}
        self.meta_copies: dict[int, Tensor] = {}
        self.originals: dict[int, Tensor] = {}
        self.state: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        self.inputs: tuple[Value, ...] = ()
        tensors = list(tensors)
        self.memory = StateMemory(tensor for _, _, tensor in tensors)
        self._add_state(tensors)

    def _add_state(self, tensors: Iterable[tuple[str, str, Tensor]]) -> None:
        for kind, name, tensor in tensors:
            value = self.known.get(id(tensor))
            if value is not None:
                self.aliases[name] = value[1].name
            else:
                self.state[name] = self._new(tensor, kind, name, static=True, fixed=kind != "parameter")

    def add_inputs(self, tree: Any) -> None:
        """Make the given tensors the run's inputs."""
        self.inputs = tuple(self._new(tensor, "input") for tensor in tensors_in(tree))

    def _new(self, tensor: Tensor, source: str, name: str = "", **details: Any) -> Value:
        if tensor.is_nested:
            raise UnsupportedModel(f"`{self.failed_in or 'model'}`: works on a nested tensor, whose rows have sizes of "
                                   "their own; give a model that pads them to one size")
        value = Value(self.count, tuple(tensor.shape), tensor.dtype, source, name, **details)
        self.count += 1
        self.known[id(tensor)] = (tensor, value)
        return value

    def _value(self, tensor: Tensor) -> Value:
        known = self.known.get(id(tensor))
        if known is not None:
            return known[1]
        if isinstance(tensor, nn.Parameter):
            # `nn.Parameter(weight)` in forward shares the memory of its argument, and no operation shows it.
            same = [value for other, value in self.known.values() if same_elements(other, tensor)]
            if same:
                return self.known.setdefault(id(tensor), (tensor, same[-1]))[1]
            self.has_unregistered_parameters = True
        number = tensor.item() if tensor.numel() == 1 and not tensor.is_meta else None
        return self._new(tensor, "constant", static=True, fixed=not isinstance(tensor, nn.Parameter), number=number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, operation_name(func)
        if self.detector is not None:
            self.detector.check_operation(name)
        if name == "aten.set_" and args[0] in self.memory and isinstance(args[1], Tensor):
            self.assign(args[0], args[1], name, func)
            return args[0]
        read: list[Value] = []
        recorded_args = self._record_args(args, read)
        recorded_kwargs = dict(zip(kwargs, self._record_args(kwargs.values(), read), strict=True)) if kwargs else kwargs
        try:
            result = self._on_meta(func, args, kwargs) if self.meta else func(*args, **kwargs)
        except Exception:
            self.failed_args = recorded_args
            raise
        static = all(value.static for value in read)
        fixed = bool(read) and all(value.fixed for value in read)
        outputs = tuple(self._output(tensor, static, fixed) for tensor in flat(result))
        if outputs:
            self._record(name, func, recorded_args, recorded_kwargs, read, outputs)
        for tensor in written_tensors(func, args, kwargs):
            self._rewritten(tensor, static)
        return result

    def _record(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], read: Iterable[Value],
                outputs: tuple[Value | None, ...]) -> None:
        module = self.stack[-1] if self.stack else ""
        self.ops.append(Op(len(self.ops), name, func, args, kwargs, tuple(read), outputs, module))

    def _rewritten(self, tensor: Tensor, static: bool) -> None:
        """What the model holds in the memory of a tensor that was written into is a parameter as it was no longer."""
        for held in self.memory.at(tensor):
            value = self.known[id(held)][1]
            if value.shape and (value.name or (value.static and not static)):
                self._record(ASSIGNED, None, (value,), {}, (value,),
                             (self._new(held, "operation", static=static and value.static),))

    def assign(self, target: Tensor, source: Tensor, name: str = ASSIGNED, func: Any = None) -> None:
        """Give a tensor another's elements; on the meta device the model's own tensors are real, and this is noted."""
        read = (self._value(target), self._value(source))
        if not self.meta or target.is_meta:
            (func or torch.Tensor.data.__set__)(target, source)  # type: ignore[attr-defined]
            self.memory.add(target, target)
        elif target.shape != source.shape or target.dtype != source.dtype:
            self.needs_data = self.needs_data or "a parameter is replaced by one of another shape or type"
        self._record(name, func, read, {}, read, (self._new(target, "operation", static=read[1].static),))

    def add_replaced(self, tensors: Iterable[tuple[str, str, Tensor]]) -> None:
        """Note the parameters and buffers that the run has put in the place of others (`layer.weight = ...`)."""
        for kind, name, tensor in tensors:
            value = self.state.get(name)
            if kind != "attribute" and tensor not in self.memory and value is not None and value.shape == tensor.shape:
                read = value, self._value(tensor)
                self._record(ASSIGNED, None, read, {}, read, (self._new(tensor, "operation", static=read[1].static),))

    def read_outside(self, name: str, tensor: Tensor) -> None:
        """Note that code outside torch reads a tensor."""
        value = self._value(tensor)
        self._record(name, None, (value,), {}, (value,), ())

    def _record_args(self, items: Iterable[Any], read: list[Value]) -> tuple[Any, ...]:
        """Arguments with each tensor replaced by its value, which is also added to `read`."""
        recorded = []
        for item in items:
            if isinstance(item, Tensor):
                item = self._value(item)
                read.append(item)
            elif isinstance(item, list | tuple) and any(isinstance(part, Tensor) for part in item):
                item = type(item)(self._record_args(item, read))
            recorded.append(item)
        return tuple(recorded)

    def _output(self, tensor: Tensor | None, static: bool, fixed: bool) -> Value | None:
        if tensor is None:
            return None
        known = self.known.get(id(tensor))
        # An in-place operation returns its argument: the same value, unless its shape has changed.
        if known is not None and known[1].shape == tuple(tensor.shape):
            return known[1]
        return self._new(tensor, "operation", static=static, fixed=fixed)

    def _on_meta(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = operation_name(func)
        result = None if kwargs else infer_on_meta(name, args)
        if result is not None:
            return result
        tensors = flat((*args, *kwargs.values()))
        persistent = any(t in self.memory or self._value(t).name for t in tensors)
        if tensors and not persistent and not any(t.is_meta for t in tensors):
            return func(*args, **kwargs)  # plain constants: their data may matter, and costs little
        if name in _READS_DATA and tensors:
            # The run goes on: most of these operations fail on the meta device, and the result is discarded anyway.
            self.needs_data = self.needs_data or f"{func} reads data"
        result = func(*map_arguments(self._meta_copy, args),
                      **{key: map_arguments(self._meta_copy, (item,))[0] for key, item in kwargs.items()})
        return map_arguments(self._original, (result,))[0]

    def _meta_copy(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        copy = self.meta_copies.get(id(tensor))
        if copy is None:
            self._value(tensor)  # keeps it alive
            copy = self.meta_copies[id(tensor)] = torch.empty_like(tensor, device="meta", requires_grad=False)
            self.originals[id(copy)] = tensor
            for held in self.memory.at(tensor):
                self.memory.add(copy, held)
        return copy

    def _original(self, tensor: Tensor) -> Tensor:
        """In-place operations on a tensor with a meta copy must give the tensor itself back to the model."""
        original = self.originals.get(id(tensor), tensor)
        if original.shape != tensor.shape:
            self.needs_data = self.needs_data or "a tensor that is not on the meta device is resized in place"
            return tensor
        return original

    @contextmanager
    def module_names(self) -> Iterator[None]:
        """Attribute operations to the innermost running module, by hooks that are gone afterwards."""
        thread = threading.get_ident()

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread and module in self.names:
                self.stack.append(self.names[module])
                self.failed_in = self.stack[-1]

        def leave(module: nn.Module, _args: Any, output: Any) -> None:
            if threading.get_ident() == thread and module in self.names and self.stack:
                name = self.stack.pop()
                values = tuple(map(self._value, flat(output)))
                self.module_outputs.setdefault(name, []).append(values)
                if output is not None:  # it has not failed
                    self.failed_in = self.stack[-1] if self.stack else ""

        handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def failure(self, error: Exception | None) -> TraceError:
        """Why the run gave no graph; `error` is what ended it, if it did not reach its end."""
        if isinstance(error, UnsupportedModel):
            raise error
        where = f"`{self.failed_in or 'model'}`"
        if self.needs_data:
            failure = TraceError(f"{where} can't be run on shapes alone: {self.needs_data}; give a model "
                                 "and inputs with data, on another device than meta")
        elif isinstance(error, NotImplementedError) and (operator := _HIGHER_ORDER.search(str(error))):
            failure = TraceError(f"{where} calls the higher-order operator `{operator[1]}`, whose branches no run "
                                 "shows; give a model with plain Python control flow in its place (`if`, `for`)")
        else:
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            root = next(module for module, name in self.names.items() if not name)
            inner = "" if self.failed_in else wrapped_network(root)
            failure = TraceError(f"{where} failed while the model was run on the given inputs: "
                                 f"{type(error).__name__}: {message}; check the inputs' shapes, dtype and device with "
                                 "a plain call of the model"
                                 f"{f', or give its `.{inner}` if it wraps a network' if inner else ''}")
        failure.ops, failure.failed_args = tuple(self.ops), self.failed_args
        failure.__cause__ = error
        return failure

    def graph(self, output: Any, training: bool, width_independent: bool) -> Graph:
        """The graph of the finished run."""
        outputs = tuple(self._value(tensor) for tensor in tensors_in(output))
        modules = {name: type(module).__name__ for module, name in self.names.items()}
        module_outputs = {name: tuple(values) for name, values in self.module_outputs.items()}
        return Graph(tuple(self.ops), self.inputs, outputs, self.state, self.aliases, modules, module_outputs, training,
                     "meta" if self.meta else "real", self._kernels(), self.has_unregistered_parameters,
                     width_independent)

    def _kernels(self) -> frozenset[str]:
        """Filters of convolution layers, parametrised ones included."""
        ranks = {name: 2 + len(module.kernel_size) for module, name in self.names.items()
                 if isinstance(module, _ConvNd)}
        owned = ((name, value, name.partition(".parametrizations.")[0] if ".parametrizations." in name
                  else name.rpartition(".")[0]) for name, value in self.state.items())
        return frozenset(name for name, value, owner in owned if len(value.shape) == ranks.get(owner))
