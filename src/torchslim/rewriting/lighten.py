"""Rewrite layer after layer, rule after rule: model + rules -> a lighter copy, and what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, isnan
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from torchslim.costs.profiler import profiled
from torchslim.errors import RequestError
from torchslim.planning.pruning import plan
from torchslim.rewriting.building import built
from torchslim.rewriting.calibration_data import Split, taken
from torchslim.rewriting.layer_selection import LayerFilter, candidates, check_patterns, ends_of, shares
from torchslim.rewriting.output_fitting import fit_to_outputs
from torchslim.rewriting.replacements import Replacement, Rule
from torchslim.rewriting.report import LightenResult, RewrittenLayer, told
from torchslim.rewriting.request import Rules, check_widths, listed, seed_of, sizes, steps_of
from torchslim.rewriting.run_check import put_in
from torchslim.rewriting.steps import ArchitectureStep, RewriteStep, exchange
from torchslim.surgery.cutting import apply
from torchslim.tracing.graph import Graph
from torchslim.tracing.trace import trace
from torchslim.utils.copying import copied
from torchslim.utils.inputs import Inputs, unwrap
from torchslim.utils.layer_spec import Spec


def lighten(model: nn.Module, rules: Rules, inputs: Inputs | None = None, *, only: Sequence[str] = (),
            exclude: Sequence[str] = (), kernels: Sequence[int] = (), min_channels: int = 0, min_share: float = 0.0,
            ends: bool = False, fresh: bool = False, data: Iterable[Inputs] | None = None, seed: int = 0) -> nn.Module:
    """A copy of a model whose heavy layers are rewritten into light ones; the model is left as it was.

    The new layers start from the old weights, as near as they come to them (`torchslim.rewriting.decomposition`),
    with the old bias; norms and activations around them stay. Strides, padding, dilation, transposed convolutions,
    data type, device, memory format, mode and `requires_grad` survive. A module in two places stays one; layers with
    tied or computed weights, with hooks, or of classes other than torch's own are left alone.

    Args:
        model: any module.
        rules: one, or several that are applied one after the other: "separable", "grouped:4" (also ":shuffle"),
            "asymmetric", "depthwise", "lowrank:0.25" (a share, or a number of channels), "ghost", "fire",
            "pointwise-after", "pointwise-before" (see `torchslim.rewriting.replacements`), "width:0.5" (half of the
            channels of each group, chosen by `torchslim.plan`; needs `inputs`). A pair (rule, patterns) is for layers
            of these names, in place of `only`.
        inputs: what the model is called with; lets the first and last layers be found by what runs, multiply-adds be
            counted, and layers stay as they are with whose rewrites the network would not run (its code reads
            `self.conv.out_channels`). Without, the first and last are so by their order in the model, and whether it
            runs is seen with `data` alone.
        only, exclude: patterns of names of layers that may, or may not, be rewritten.
        kernels: only layers whose kernel's largest side is one of these.
        min_channels: only layers with at least so many inputs and outputs.
        min_share: only layers with at least this share of the multiply-adds, 0 to 1; needs `inputs`.
        ends: also the layers that read the input and those that make the outputs, which are left alone otherwise,
            unless `only` has their very name.
        fresh: start from fresh weights, as torch initialises.
        data: an iterable of such inputs, without labels, on which each new layer is fitted to give what the old one
            gave, and after which the batch norms behind them have new running statistics
            (`torchslim.rewriting.output_fitting`). The last fifth of the batches (at least one; of a single tensor, of
            its items) is kept back: it chooses each layer's ridge, decides whether a fit is kept, and is what the
            reported error is of. A single batch of another form is fitted to and measured on.
        seed: of fresh weights; the caller's generator is left as it was.

    Raises:
        RequestError: an unknown rule, a pattern that no layer matches, nothing that the rules fit, no data, or data
            that the model does not take.
        TraceError: the model does not run on the inputs.
    """
    return lighten_with_report(
        model, rules, inputs, only=only, exclude=exclude, kernels=kernels, min_channels=min_channels,
        min_share=min_share, ends=ends, fresh=fresh, data=data, seed=seed).model


@torch.inference_mode(False)
def lighten_with_report(model: nn.Module, rules: Rules, inputs: Inputs | None = None, *, only: Sequence[str] = (),
              exclude: Sequence[str] = (), kernels: Sequence[int] = (), min_channels: int = 0, min_share: float = 0.0,
              ends: bool = False, fresh: bool = False, data: Iterable[Inputs] | None = None,
              seed: int = 0) -> LightenResult:
    """As `lighten`, with the report of what was done."""
    model, seed = unwrap(model), seed_of(seed)
    choice = LayerFilter(listed("only", only), listed("exclude", exclude), sizes(kernels), min_channels, min_share,
                         ends)
    if inputs is None and min_share:
        raise RequestError("lighten: min_share= needs inputs=, to count multiply-adds on")
    steps = steps_of(rules)
    check_widths(steps, choice)
    if inputs is None and any(isinstance(rule, float) for rule, _ in steps):
        raise RequestError("lighten: width: needs inputs=, to run the model on")
    with torch.random.fork_rng(devices=[]):
        split = None if data is None else taken(model, data)
        torch.default_generator.manual_seed(seed)
        job = _Job(copied(model), inputs, split, fresh)
        start = job.tape
        for rule, patterns in steps:
            chosen = replace(choice, only=patterns) if patterns else choice
            if isinstance(rule, float):
                job.narrow(rule, chosen)
            else:
                job.rewrite(rule, chosen)
    if not job.rows:
        some = "; ".join(f"`{name}`: {reason}" for name, reason in job.left[:3])
        raise RequestError(f"lighten: no layer fits {rules!r}{f' ({some})' if some else ''}; the first and the last "
                           "layer are left alone unless ends=True")
    costs = None if start is None or job.tape is None else (profiled(model, start).macs,
                                                            profiled(job.model, job.tape).macs)
    return LightenResult(job.model, tuple(job.rows), tuple(job.steps), tuple(dict.fromkeys(job.left)),
                     (_params(model), _params(job.model)), costs)


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _Job:
    """The copy that is worked on, and what was done to it."""

    def __init__(self, model: nn.Module, inputs: Inputs | None, split: Split | None, fresh: bool) -> None:
        self.model, self.inputs, self.split, self.fresh = model, inputs, split, fresh
        self.origins: set[str] = set()
        self.rows: list[RewrittenLayer] = []
        self.steps: list[ArchitectureStep] = []
        self.left: list[tuple[str, str]] = []
        # What the model as it is now does: each change of it is followed by one run.
        self.probe = inputs if inputs is not None or split is None else split[0][0]
        self.run = None if self.probe is None else trace(model, self.probe, watch=False)

    @property
    def tape(self) -> Graph | None:
        """What the model does on the inputs, if there are some; those of the data do not count multiply-adds."""
        return None if self.inputs is None else self.run

    def rewrite(self, rule: Rule, choice: LayerFilter) -> None:
        """Put what the rule makes in the place of each layer that is meant, and that the network can do without."""
        found = self._chosen(rule, choice)
        if not found:
            return
        before, tape = copied(self.model), self.tape
        new = {name: built(rewrite, self.model.get_submodule(name), not self.fresh) for name, rewrite in found.items()}
        if self.probe is None or self.run is None:
            exchange(self.model, {self.model.get_submodule(name): layer for name, layer in new.items()})
        else:
            self.run, guilty = put_in(self.model, new, self.probe, self.run)
            self.left += [(name, f"{rule.text}: {reason}") for name, reason in guilty.items()]
            new = {name: layer for name, layer in new.items() if name not in guilty}
        if not new:
            return
        self.steps.append(RewriteStep(rule.text, tuple(new)))
        self.origins |= set(new)
        errors: Mapping[str, float | None] = dict.fromkeys(new)
        if self.split is not None or not (self.fresh or "norm" in rule.words):
            errors = _errors(before, self.model, list(new), self.split)
        self._note(before, tape, rule.text, errors)

    def _chosen(self, rule: Rule, choice: LayerFilter) -> dict[str, Replacement]:
        graph = self.tape
        found, part = candidates(self.model, graph), shares(graph)
        ends = ends_of(list(found), graph)
        check_patterns(choice, list(found), self.origins)
        new = {}
        for name, (_, spec) in found.items():
            names = choice.names(name, self.origins)
            if not choice.named(names) or (isinstance(spec, Spec) and choice.spares(
                    names, spec, name in ends, None if graph is None else part.get(name, 0.0))):
                continue
            rewrite = spec if isinstance(spec, str) else rule.lighter(spec)
            if isinstance(rewrite, str):
                self.left.append((name, f"{rule.text}: {rewrite}"))
            else:
                new[name] = rewrite
        return new

    def narrow(self, share: float, choice: LayerFilter) -> None:
        """Keep this share of the channels of every group."""
        assert self.inputs is not None
        before, tape = self.model, self.tape
        decided = plan(before, self.inputs, scope={"*": share}, only=choice.only, exclude=choice.exclude)
        self.model = apply(before, decided)
        self.run = trace(self.model, self.inputs, watch=False)
        self.steps.append(decided)
        changed = [name for name, layer in before.named_modules() if name and isinstance(layer, _ConvNd | nn.Linear)
                   and _params(layer) != _params(self.model.get_submodule(name))]
        self._note(before, tape, f"width:{share:g}", dict.fromkeys(changed))

    def _note(self, before: nn.Module, tape: Graph | None, rule: str, errors: Mapping[str, float | None]) -> None:
        """A row for each layer that changed."""
        costs = [] if tape is None or self.tape is None else [
            {module.name: module.macs for module in profiled(model, run).modules}
            for model, run in ((before, tape), (self.model, self.tape))]
        for name, error in errors.items():
            old, new = before.get_submodule(name), self.model.get_submodule(name)
            macs = (costs[0].get(name, 0), costs[1].get(name, 0)) if costs else None
            self.rows.append(RewrittenLayer(name, rule, told(old), told(new), (_params(old), _params(new)), macs,
                                            error))


def _errors(before: nn.Module, after: nn.Module, layers: Sequence[str],
            split: Split | None) -> dict[str, float | None]:
    """How far each new layer's outputs are from the old one's; with data, after it was fitted to them."""
    if split is not None:
        found = {name: left**0.5 for name, (_, left) in fit_to_outputs(before, after, layers, *split).items()}
    else:
        found = {name: on_noise(before.get_submodule(name), after.get_submodule(name)) for name in layers}
    return {name: None if isnan(error) else error for name, error in found.items()}


PLACES, NUMBERS = 256, 2**16
"""Of white noise each layer gives outputs at so many places at least, and so many numbers in all, so that the error is
known to a few hundredths of itself."""


@torch.no_grad()
def on_noise(old: nn.Module, new: nn.Module) -> float:
    """Relative error of a new layer's outputs on white noise, in float64; not-a-number on the meta device."""
    like: Any = old
    if like.weight.is_meta:
        return float("nan")
    outputs, dims = like.weight.shape[0], like.weight.dim() - 2
    places = max(PLACES, NUMBERS // outputs)
    if isinstance(old, nn.Linear):
        shape = places, like.in_features
    else:
        side, steps = ceil(places**(1 / dims)), (1,) * dims if like.transposed else like.stride
        shape = (1, like.in_channels, *(max(side * step, 2 * d * k) for step, d, k in zip(
            steps, like.dilation, like.kernel_size, strict=True)))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like.weight.device)
    wanted, found = copied(old).double()(noise), copied(new).double()(noise)
    return float(((wanted - found).square().mean() / wanted.var()).sqrt())
