"""The runs of one network: in eval mode, and in train mode where that reads more.

Parts that only training runs (auxiliary heads) must survive a cut too, so their graph is coupled with the other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from types import FunctionType

import torch
from torch import nn

from torchslim.errors import TraceError, UnsupportedModel
from torchslim.tracing.graph import Graph
from torchslim.tracing.trace import trace
from torchslim.tracing.width_reads import reads_training_flag
from torchslim.utils.inputs import Inputs, map_tensors, unwrap, wrapped_network
from torchslim.utils.modules import named_modules
from torchslim.utils.outputs import Outputs


def trace_modes(model: nn.Module, inputs: Inputs, outputs: Outputs = None) -> tuple[Graph, ...]:
    """The graph in eval mode and, where some parameter is not read there (auxiliary heads), the one in train mode.

    `outputs` says which outputs matter in eval mode. In train mode, where a model may return something else, all do but
    those at the same places, or of the same modules, as the ones that do not matter.
    """
    graph = trace(model, inputs, outputs=outputs)
    modules = named_modules(unwrap(model))
    _check_supported(modules, graph)
    unread = {name for name, value in graph.state.items() if value.source == "parameter"} - graph.tensors_read()
    if not unread and not reads_training_flag(module for _, module in modules):
        return (graph,)
    try:
        training = trace(model, _at_least_two_samples(inputs), training=True)
    except TraceError:
        return (graph,)  # detectors want targets in train mode; what no run reads stays as it is
    return graph, replace(training, ignored_outputs=_ignored_alike(graph, training))


def _ignored_alike(graph: Graph, other: Graph) -> frozenset[int]:
    """Places of another run's outputs that do not matter, since those of this run don't.

    Those at the same places, where the outputs come in the same containers; else those of the same modules.
    """
    if other.output_structure == graph.output_structure:
        return graph.ignored_outputs
    ignored = {graph.outputs[place].id for place in graph.ignored_outputs}
    alike = {other.module_outputs[name][call][place].id
             for name, calls in graph.module_outputs.items() if name in other.module_outputs
             for call, values in enumerate(calls[:len(other.module_outputs[name])])
             for place, value in enumerate(values[:len(other.module_outputs[name][call])]) if value.id in ignored}
    return frozenset(place for place, value in enumerate(other.outputs) if value.id in alike)


def _check_supported(modules: Sequence[tuple[str, nn.Module]], graph: Graph) -> None:
    """Raise for what tracing does not see: code and tensors that the model's registries don't hold.

    Args:
        modules: those of the model under their names, the model itself first.
        graph: of its run.

    Raises:
        UnsupportedModel: it holds scripted modules, is quantised or prepared for it, uses layers from outside its
            registries, or returns no tensors.
    """
    for name, module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModel(f"`{name}`: {type(module).__name__} is a scripted module, whose widths are "
                                   "compiled in; give the model with the nn.Module that it was scripted from")
        for attribute, item in module.__dict__.items():
            held = _held_by(item, modules) if type(item) in (FunctionType, list, tuple) else ""
            if held:
                raise UnsupportedModel(f"`{name or 'model'}.{attribute}`: a function that closes over {held}; a copy "
                                       "of the model would go on running the original's; make it a method, or hand the "
                                       "module over as an argument")
    _check_not_quantised(modules, graph)
    if graph.has_unregistered_parameters:
        raise UnsupportedModel("model: it uses layers or parameters that are not registered with it, which copies and "
                               "optimizers would miss; hold them in nn.ModuleList, nn.ModuleDict or as attributes")
    if not graph.outputs:
        inner = wrapped_network(modules[0][1])
        raise UnsupportedModel("model: returns no tensor that could be found; tensors in tuples, lists, mappings and "
                               f"dataclasses are{f'; if it wraps a network, give its `.{inner}`' if inner else ''}")


# Operations on quantised tensors, and those that round as if for them; none runs in float64.
_QUANTISED = ("quantized.", "quantized_decomposed.", "aten.quantize_per_", "aten.fake_quantize_",
              "aten._fake_quantize_", "aten._fused_moving_avg_obs_fq_helper")


def _check_not_quantised(modules: Sequence[tuple[str, nn.Module]], graph: Graph) -> None:
    """Raise for layers that hold packed integers, and for observers, which take whole tensors for their ranges."""
    quantization = sys.modules.get("torch.ao.quantization")  # in use only if it was imported
    kinds = tuple(getattr(quantization, name) for name in ("ObserverBase", "FakeQuantizeBase")
                  if hasattr(quantization, name))
    observer = next((name for name, module in modules
                     if isinstance(module, kinds) and name in graph.module_outputs), None)
    if observer is not None:
        raise UnsupportedModel(f"`{observer}`: {graph.modules[observer]} watches or rounds for quantisation; prune the "
                               "plain network first, then prepare it for quantisation")
    op = next((op for op in graph.ops if op.name.startswith(_QUANTISED)), None)
    if op is not None:
        raise UnsupportedModel(f"{op.where}: works on quantised values, whose packed weights can't be cut; prune the "
                               "plain network first, then quantise it")


def _held_by(item: object, modules: Sequence[tuple[str, nn.Module]]) -> str:
    """The class of a module of the model that a function, or one of a list of functions, closes over."""
    functions = [part for part in (item if isinstance(item, list | tuple) else [item])
                 if isinstance(part, FunctionType)]
    own = {module for _, module in modules} if functions else set()
    for function in functions:
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            if isinstance(held, nn.Module) and held in own:
                return type(held).__name__
    return ""


def retrace(model: nn.Module, inputs: Inputs, graph: Graph) -> Graph:
    """The graph of another run in the same mode, such as of the model at other widths."""
    if graph.training:
        return trace(model, _at_least_two_samples(inputs), training=True, detect_width_reads=False)
    return trace(model, inputs, meta=graph.device == "meta", detect_width_reads=False)


def _at_least_two_samples(inputs: Inputs) -> Inputs:
    """Inputs with every batch of one doubled: in train mode batch norm refuses one value a channel."""
    doubled: Inputs = map_tensors(lambda t: t.expand(2, *t.shape[1:]) if t.dim() > 1 and t.shape[0] == 1 else t, inputs)
    return doubled
