"""Run a model once and write down what it did: model + inputs -> Graph.

The only file that knows torch's dispatch internals. The run is made on the meta device first: activations have
shapes and no data, parameters are stood in for one by one as operations ask for them, and nothing is computed. Where
the control flow reads data (`.item()`, `nonzero`, non-maximum suppression) or an operation has no meta form, the model
runs again for real. Either way nothing stays on the model: module attributes, buffers, training mode and random state
are put back, after exceptions too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from torchslim.errors import TraceError, UnsupportedModel
from torchslim.tracing.arguments import flat, operation_name, written_tensors
from torchslim.tracing.failures import trace_failure
from torchslim.tracing.graph import Graph, Op, Value, unused_ops
from torchslim.tracing.meta_operations import MetaOperations
from torchslim.tracing.undispatched import ASSIGNED, StateMemory, UndispatchedCalls, same_elements
from torchslim.tracing.width_reads import WidthReadDetector, reads_widths_otherwise
from torchslim.utils.attention import attention_of_any_width
from torchslim.utils.dispatch import DispatchMode
from torchslim.utils.inputs import Inputs, arguments, map_tensors, tensors_in, unwrap
from torchslim.utils.modules import convolution_filters, held_tensors, named_tensors, names_of_modules
from torchslim.utils.outputs import Outputs, ignored_outputs, structure
from torchslim.utils.preserve import plain_context, preserved


def trace(model: nn.Module, inputs: Inputs, *, training: bool = False, meta: bool | None = None,
          detect_width_reads: bool = True, outputs: Outputs = None) -> Graph:
    """The graph of one run of `model`.

    Args:
        model: any module; compiled and data-parallel wrappers are looked through.
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        training: run in train mode, which is possible on the meta device only (batch-norm statistics stay untouched).
        meta: run on the meta device alone (True) or for real alone (False); by default for real where meta fails.
        detect_width_reads: find out whether the model's code reads widths; without it the graph says that it may.
        outputs: which of the outputs matter (see `torchslim.plan`).

    Raises:
        RequestError: there are no such outputs.
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
        result = _run(model, tensors, *call, training, True, detect_width_reads, outputs)
        if isinstance(result, Graph):
            return result
        parameters = [tensor for kind, _, tensor in tensors if kind == "parameter"]
        # Anything may go wrong on shapes without data; what the model does for real is what counts.
        if meta or training or any(t.is_meta for t in (*tensors_in(call), *parameters)):
            raise result
    result = _run(model, tensors, *call, training, False, False, outputs)
    if isinstance(result, TraceError):
        raise result
    return result


def _run(model: nn.Module, state: Sequence[tuple[str, str, Tensor]], args: tuple[Any, ...], kwargs: dict[str, Any],
         training: bool, meta: bool, detect_width_reads: bool, outputs: Outputs) -> Graph | TraceError:
    """The graph of one run, or why there is none: the model failed, or needs data on the meta device."""
    names = names_of_modules(model)
    detector = WidthReadDetector() if detect_width_reads else None
    recorder = _Recorder(state, names, meta, detector)
    output, error = None, None
    calls = UndispatchedCalls(recorder.assign, recorder.read_outside)
    with preserved(names, state, keep_contents=not meta), plain_context(), attention_of_any_width(names):
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
                recorder.observe_held(output)
            except Exception as exception:
                error = exception
    if error is not None or recorder.on_meta.needs_data:
        return recorder.failure(error)
    width_independent = (detector is not None and not detector.first_width_read
                         and not reads_widths_otherwise(model, names, recorder.ops))
    return recorder.graph(output, ignored_outputs(output, outputs), training, width_independent)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta", requires_grad=False)


class _Recorder(DispatchMode):
    """Writes each dispatched operation down, and on the meta device replaces real tensors by their shapes."""

    def __init__(self, tensors: Sequence[tuple[str, str, Tensor]], names: Mapping[nn.Module, str], meta: bool,
                 detector: WidthReadDetector | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meta = meta
        self.detector = detector
        self.names = names
        self.stack: list[str] = []
        self.failed_in = ""
        self.failed_args: tuple[Any, ...] = ()
        self.module_outputs: dict[str, list[tuple[Value, ...]]] = {}
        self.ops: list[Op] = []
        self.count = 0
        self.has_unregistered_parameters = False
        self.observed: set[int] = set()
        # Tensors are known by identity. Each is kept alive here, or its id could be given to another.
        self.known: dict[int, tuple[Tensor, Value]] = {}
        self.state: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        self.inputs: tuple[Value, ...] = ()
        self.memory = StateMemory(tensor for _, _, tensor in tensors)
        self.on_meta = MetaOperations(self.memory, self._value)
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
            result = self.on_meta(func, args, kwargs) if self.meta else func(*args, **kwargs)
        except Exception:
            self.failed_args = recorded_args
            raise
        static = all(value.static for value in read)
        fixed = bool(read) and all(value.fixed for value in read)
        outputs = tuple(self._output(tensor, static, fixed) for tensor in flat(result))
        if outputs:
            self._record(name, func, recorded_args, recorded_kwargs, read, outputs)
        else:
            self.observed.update(value.id for value in read)
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
            self.on_meta.note("a parameter is replaced by one of another shape or type")
        self._record(name, func, read, {}, read, (self._new(target, "operation", static=read[1].static),))

    def add_replaced(self, tensors: Iterable[tuple[str, str, Tensor]]) -> None:
        """Note the parameters and buffers that the run has put in the place of others (`layer.weight = ...`)."""
        for kind, name, tensor in tensors:
            value = self.state.get(name)
            if kind != "attribute" and tensor not in self.memory and value is not None and value.shape == tensor.shape:
                read = value, self._value(tensor)
                self._record(ASSIGNED, None, read, {}, read, (self._new(tensor, "operation", static=read[1].static),))

    def observe_held(self, output: Any) -> None:
        """Note which tensors modules hold after the run, where it has results that are not for its output."""
        if unused_ops(self.ops, {self._value(tensor).id for tensor in tensors_in(output)} | self.observed):
            self.observed.update(self.known[id(tensor)][1].id for tensor in held_tensors(self.names)
                                 if id(tensor) in self.known)

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
        root = next(module for module, name in self.names.items() if not name)
        failure = trace_failure(error, self.failed_in, self.on_meta.needs_data, root)
        failure.ops, failure.failed_args = tuple(self.ops), self.failed_args
        return failure

    def graph(self, output: Any, ignored: frozenset[int], training: bool, width_independent: bool) -> Graph:
        """The graph of the finished run."""
        outputs = tuple(self._value(tensor) for tensor in tensors_in(output))
        modules = {name: type(module).__name__ for module, name in self.names.items()}
        module_outputs = {name: tuple(values) for name, values in self.module_outputs.items()}
        filters = convolution_filters(self.names, {name: len(value.shape) for name, value in self.state.items()})
        return Graph(tuple(self.ops), self.inputs, outputs, self.state, self.aliases, modules, module_outputs, training,
                     "meta" if self.meta else "real", filters, self.has_unregistered_parameters, width_independent,
                     frozenset(self.observed), ignored, structure(output))
