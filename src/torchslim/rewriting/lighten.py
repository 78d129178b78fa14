"""Replace heavy layers, rule after rule: model + rules -> a lighter copy, and a report of what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, isnan
from typing import Any

import torch
from torch import nn

from torchslim.costs.profiler import profiled
from torchslim.errors import RequestError
from torchslim.rewriting.building import build_replacement
from torchslim.rewriting.calibration_data import Split, split_batches
from torchslim.rewriting.layer_selection import (
    LayerFilter,
    check_patterns,
    end_layers,
    find_layers,
    mac_shares,
    names_of,
)
from torchslim.rewriting.output_fitting import fit_to_outputs
from torchslim.rewriting.replacements import Replacement, Rule
from torchslim.rewriting.report import LightenResult, RewrittenLayer, describe_layer
from torchslim.rewriting.request import Rules, check_seed, kernel_sizes, parse_rules, pattern_tuple
from torchslim.rewriting.run_check import insert_layers
from torchslim.rewriting.steps import RewriteStep, exchange
from torchslim.tracing.graph import Graph
from torchslim.tracing.trace import trace
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, unwrap
from torchslim.utils.layer_spec import LayerSpec


def lighten(model: nn.Module, rules: Rules, inputs: Inputs | None = None, *, only: Sequence[str] = (),
            exclude: Sequence[str] = (), kernels: Sequence[int] = (), min_channels: int = 0, min_share: float = 0.0,
            ends: bool = False, fresh: bool = False, data: Iterable[Inputs] | None = None, seed: int = 0) -> nn.Module:
    """A copy of a model whose heavy layers are replaced by light ones; the model is left as it was.

    The new layers start from the nearest weights to the old ones (`torchslim.rewriting.decomposition`) and the old
    bias; norms and activations around them stay. Strides, padding, dilation, transposed convolutions, data type,
    device, memory format, mode and `requires_grad` are kept. A module in two places stays one; layers with tied or
    computed weights, with hooks, or of classes other than torch's own are left alone.

    Args:
        model: any module.
        rules: one, or several that are applied one after the other: "separable", "grouped:4" (also ":shuffle"),
            "asymmetric", "depthwise", "lowrank:0.25" (a share, or a number of channels), "ghost", "fire",
            "pointwise-after", "pointwise-before" (see `torchslim.rewriting.replacements`). A pair (rule, patterns) is
            for layers of these names, in place of `only`.
        inputs: what the model is called with. With these the first and last layers are found by what runs,
            multiply-adds are counted, and layers with whose replacements the network would not run (its code reads
            `self.conv.out_channels`) stay as they are. Without, the first and last are those by order in the model,
            and whether it runs is checked with `data` only.
        only, exclude: patterns of names of layers that may, or may not, be rewritten.
        kernels: only layers whose kernel's largest side is one of these.
        min_channels: only layers with at least so many inputs and outputs.
        min_share: only layers with at least this share of the multiply-adds, 0 to 1; needs `inputs`.
        ends: also the layers that read the input and those that make the outputs, which are left alone otherwise,
            unless `only` has their very name.
        fresh: start from fresh weights, as torch initialises them.
        data: an iterable of such inputs, without labels, on which each new layer is fitted to the outputs of the old
            one and the batch norms behind get new running statistics (`torchslim.rewriting.output_fitting`). The last
            fifth of the batches (at least one; of a single tensor, of its items) is held out: it chooses each layer's
            ridge, decides whether a fit is kept, and the reported error is measured on it. A single batch of another
            form is fitted to and measured on.
        seed: of fresh weights; the caller's generator is left as it was.

    Raises:
        RequestError: an unknown rule, a pattern that no layer matches, nothing that the rules fit, no data, or data
            that the model does not take.
        TraceError: the model does not run on the inputs.

    Example:
        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(*(torch.nn.Conv2d(n, 16, 3) for n in (3, 16, 16)))
        >>> ts.lighten(model, "separable", torch.randn(1, 3, 32, 32))[1].depthwise
        Conv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), groups=16, bias=False)
    """
    return lighten_with_report(
        model, rules, inputs, only=only, exclude=exclude, kernels=kernels, min_channels=min_channels,
        min_share=min_share, ends=ends, fresh=fresh, data=data, seed=seed).model


@torch.inference_mode(False)
def lighten_with_report(
        model: nn.Module, rules: Rules, inputs: Inputs | None = None, *, only: Sequence[str] = (),
        exclude: Sequence[str] = (), kernels: Sequence[int] = (), min_channels: int = 0, min_share: float = 0.0,
        ends: bool = False, fresh: bool = False, data: Iterable[Inputs] | None = None,
        seed: int = 0) -> LightenResult:
    """As `lighten`, with the report of what was done."""
    model, seed = unwrap(model), check_seed(seed)
    layer_filter = LayerFilter(pattern_tuple("only", only), pattern_tuple("exclude", exclude), kernel_sizes(kernels),
                               min_channels, min_share, ends)
    if inputs is None and min_share:
        raise RequestError("lighten: min_share= needs inputs=, to count multiply-adds on")
    parsed = parse_rules(rules)
    with torch.random.fork_rng(devices=[]):
        split = None if data is None else split_batches(model, data)
        torch.default_generator.manual_seed(seed)
        rewriter = _Rewriter(copy_model(model), inputs, split, fresh)
        before = rewriter.counted_graph
        for rule, patterns in parsed:
            rewriter.apply_rule(rule, replace(layer_filter, only=patterns) if patterns else layer_filter)
    if not rewriter.layers:
        examples = "; ".join(f"`{name}`: {reason}" for name, reason in rewriter.left_alone[:3])
        raise RequestError(f"lighten: no layer fits {rules!r}{f' ({examples})' if examples else ''}; the first and the "
                           "last layer are left alone unless ends=True")
    after = rewriter.counted_graph
    macs = None if before is None or after is None else (profiled(model, before).macs,
                                                         profiled(rewriter.model, after).macs)
    return LightenResult(rewriter.model, tuple(rewriter.layers), tuple(rewriter.steps),
                         tuple(dict.fromkeys(rewriter.left_alone)), (_params(model), _params(rewriter.model)), macs)


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _Rewriter:
    """The copy that is being rewritten, and what was done to it so far."""

    def __init__(self, model: nn.Module, inputs: Inputs | None, split: Split | None, fresh: bool) -> None:
        self.model, self.inputs, self.split, self.fresh = model, inputs, split, fresh
        self.rewritten: set[str] = set()
        self.layers: list[RewrittenLayer] = []
        self.steps: list[RewriteStep] = []
        self.left_alone: list[tuple[str, str]] = []
        # What the model is run on after each change, and the graph of the last run.
        self.run_inputs = inputs if inputs is not None or split is None else split[0][0]
        self.graph = None if self.run_inputs is None else trace(model, self.run_inputs, detect_width_reads=False)

    @property
    def counted_graph(self) -> Graph | None:
        """The graph on `inputs`, if given: multiply-adds are not counted on a batch of the data."""
        return None if self.inputs is None else self.graph

    def apply_rule(self, rule: Rule, layer_filter: LayerFilter) -> None:
        """Replace each layer that the filter selects and the rule fits, unless the network would not run with it."""
        replacements = self._replacements(rule, layer_filter)
        if not replacements:
            return
        before, graph = copy_model(self.model), self.counted_graph
        new = {name: build_replacement(replacement, self.model.get_submodule(name), self.fresh)
               for name, replacement in replacements.items()}
        if self.run_inputs is None or self.graph is None:
            exchange(self.model, {self.model.get_submodule(name): layer for name, layer in new.items()})
        else:
            self.graph, rejected = insert_layers(self.model, new, self.run_inputs, self.graph)
            self.left_alone += [(name, f"{rule.text}: {reason}") for name, reason in rejected.items()]
            new = {name: layer for name, layer in new.items() if name not in rejected}
        if not new:
            return
        self.steps.append(RewriteStep(rule.text, tuple(new)))
        self.rewritten |= set(new)
        errors: Mapping[str, float | None] = dict.fromkeys(new)
        if self.split is not None or not (self.fresh or "norm" in rule.flags):
            errors = _errors(before, self.model, list(new), self.split)
        self._report(before, graph, rule.text, errors)

    def _replacements(self, rule: Rule, layer_filter: LayerFilter) -> dict[str, Replacement]:
        graph = self.counted_graph
        layers, shares = find_layers(self.model, graph), mac_shares(graph)
        ends = end_layers(layers, graph)
        check_patterns(layer_filter, layers, self.rewritten)
        replacements = {}
        for name, spec in layers.items():
            names = names_of(name, self.rewritten)
            share = None if graph is None else shares.get(name, 0.0)
            if not layer_filter.matches_names(names) or (
                    isinstance(spec, LayerSpec) and not layer_filter.accepts(names, spec, name in ends, share)):
                continue
            replacement = spec if isinstance(spec, str) else rule.lighter_replacement(spec)
            if isinstance(replacement, str):
                self.left_alone.append((name, f"{rule.text}: {replacement}"))
            else:
                replacements[name] = replacement
        return replacements

    def _report(self, before: nn.Module, graph: Graph | None, rule: str, errors: Mapping[str, float | None]) -> None:
        """Add a row for each replaced layer."""
        macs = [] if graph is None or self.graph is None else [
            {module.name: module.macs for module in profiled(model, run).modules}
            for model, run in ((before, graph), (self.model, self.graph))]
        for name, error in errors.items():
            old, new = before.get_submodule(name), self.model.get_submodule(name)
            self.layers.append(RewrittenLayer(
                name, rule, describe_layer(old), describe_layer(new), (_params(old), _params(new)),
                (macs[0].get(name, 0), macs[1].get(name, 0)) if macs else None, error))


def _errors(before: nn.Module, after: nn.Module, layers: Sequence[str],
            split: Split | None) -> dict[str, float | None]:
    """Relative error of each new layer's outputs; with data, after fitting it."""
    if split is not None:
        errors = {name: error**0.5 for name, (_, error) in fit_to_outputs(before, after, layers, *split).items()}
    else:
        errors = {name: error_on_noise(before.get_submodule(name), after.get_submodule(name)) for name in layers}
    return {name: None if isnan(error) else error for name, error in errors.items()}


MIN_POSITIONS, MIN_VALUES = 256, 2**16
"""Least number of output positions and of output values that a layer gives on white noise, so that the standard error
of the measured error is a few hundredths of it."""


@torch.no_grad()
def error_on_noise(old: nn.Module, new: nn.Module) -> float:
    """Relative error of a new layer's outputs on white noise, in float64; not-a-number on the meta device."""
    layer: Any = old
    if layer.weight.is_meta:
        return float("nan")
    outputs, dims = layer.weight.shape[0], layer.weight.dim() - 2
    positions = max(MIN_POSITIONS, MIN_VALUES // outputs)
    if isinstance(old, nn.Linear):
        shape = positions, layer.in_features
    else:
        side, strides = ceil(positions**(1 / dims)), (1,) * dims if layer.transposed else layer.stride
        shape = (1, layer.in_channels, *(max(side * stride, 2 * d * k) for stride, d, k in zip(
            strides, layer.dilation, layer.kernel_size, strict=True)))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = noise.to(layer.weight.device)
    wanted, given = copy_model(old).double()(noise), copy_model(new).double()(noise)
    return float(((wanted - given).square().mean() / wanted.var()).sqrt())
