"""Rewrite layer after layer, rule after rule: model + rules -> a lighter copy, and what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from torchslim.calling import Inputs, unwrap
from torchslim.copying import copied
from torchslim.errors import RequestError
from torchslim.profiler import profile
from torchslim.pruning import plan
from torchslim.rewriting.choosing import Choice, candidates, check_patterns, ends_of, shares
from torchslim.rewriting.recovery import fit_to_outputs
from torchslim.rewriting.report import Lightened, Rewritten, told
from torchslim.rewriting.rules import Rewrite, Rule, parse
from torchslim.rewriting.spec import Spec
from torchslim.rewriting.steps import Rewriting, Step, put
from torchslim.surgery import apply
from torchslim.trace import trace

Rules = str | Sequence[str | tuple[str, Sequence[str]]]


def lighten(model: nn.Module, rules: Rules, inputs: Inputs | None = None, *, only: Sequence[str] = (),
            exclude: Sequence[str] = (), kernels: Sequence[int] = (), min_channels: int = 0, min_share: float = 0.0,
            ends: bool = False, fresh: bool = False, data: Iterable[Inputs] | None = None, seed: int = 0) -> nn.Module:
    """A copy of a model whose heavy layers are rewritten into light ones; the model is left as it was.

    The new layers start from the old weights, as near as they come to them (`torchslim.rewriting.fits`), with the old
    bias; norms and activations around them stay. Strides, padding, dilation, transposed convolutions, data type,
    device, memory format, mode and `requires_grad` survive. A module in two places stays one; layers with tied or
    computed weights, with hooks, or of classes other than torch's own are left alone.

    Args:
        model: any module.
        rules: one, or several that are applied one after the other: "separable", "grouped:4" (also ":shuffle"),
            "asymmetric", "depthwise", "lowrank:0.25" (a share, or a number of channels), "ghost", "fire",
            "pointwise-after", "pointwise-before" (see `torchslim.rewriting.rules`), "width:0.5" (half of the channels
            of each group, chosen by `torchslim.plan`; needs `inputs`). A pair (rule, patterns) is for layers of these
            names, in place of `only`.
        inputs: what the model is called with; lets the first and last layers be found by what runs, and multiply-adds
            be counted. Without, the first and last are so by their order in the model.
        only, exclude: patterns of names of layers that may, or may not, be rewritten.
        kernels: only layers whose kernel's largest side is one of these.
        min_channels: only layers with at least so many inputs and outputs.
        min_share: only layers with at least this share of the multiply-adds, 0 to 1; needs `inputs`.
        ends: also the layers that read the input and those that make the outputs, which are left alone otherwise,
            unless `only` has their very name.
        fresh: start from fresh weights, as torch initialises.
        data: batches of inputs, unlabelled, on which each new layer is fitted to give what the old one gave, and after
            which the batch norms behind them have new running statistics (`torchslim.rewriting.recovery`).
        seed: of fresh weights; the caller's generator is left as it was.

    Raises:
        RequestError: an unknown rule, a pattern that no layer matches, nothing that the rules fit, no data.
    """
    return lightened(model, rules, inputs, only=only, exclude=exclude, kernels=kernels, min_channels=min_channels,
                     min_share=min_share, ends=ends, fresh=fresh, data=data, seed=seed).model


@torch.inference_mode(False)
def lightened(model: nn.Module, rules: Rules, inputs: Inputs | None = None, *, only: Sequence[str] = (),
              exclude: Sequence[str] = (), kernels: Sequence[int] = (), min_channels: int = 0, min_share: float = 0.0,
              ends: bool = False, fresh: bool = False, data: Iterable[Inputs] | None = None,
              seed: int = 0) -> Lightened:
    """As `lighten`, with the report of what was done."""
    model = unwrap(model)
    choice = Choice(_listed(only), _listed(exclude), tuple(kernels), min_channels, min_share, ends)
    if inputs is None and min_share:
        raise RequestError("lighten: min_share= needs inputs=, to count multiply-adds on")
    steps = _steps(rules)
    if inputs is None and any(isinstance(rule, float) for rule, _ in steps):
        raise RequestError("lighten: width: needs inputs=, to run the model on")
    job = _Job(copied(model), inputs, None if data is None else list(data), fresh, set(), [], [], {})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for rule, patterns in steps:
            chosen = replace(choice, only=patterns) if patterns else choice
            if isinstance(rule, float):
                job.narrow(rule, chosen)
            else:
                job.rewrite(rule, chosen)
    if not job.rows:
        some = "; ".join(f"`{name}`: {reason}" for name, reason in list(job.left.items())[:3])
        raise RequestError(f"lighten: no layer fits {rules!r}{f' ({some})' if some else ''}; the first and the last "
                           "layer are left alone unless ends=True")
    return Lightened(job.model, tuple(job.rows), tuple(job.steps), tuple(job.left.items()),
                     (_params(model), _params(job.model)),
                     None if inputs is None else (profile(model, inputs).macs, profile(job.model, inputs).macs))


def _listed(patterns: Any) -> Any:
    """As a tuple, but for a string, which `Choice` refuses."""
    return patterns if isinstance(patterns, str) else tuple(patterns)


def _steps(rules: Rules) -> list[tuple[Rule | float, tuple[str, ...]]]:
    """Rules with the patterns of layers that each is for; a number is a share of channels.

    Raises:
        RequestError: an unknown rule, or none.
    """
    found = []
    for item in [rules] if isinstance(rules, str) else list(rules):
        text, patterns = (item, ()) if isinstance(item, str) else item
        found.append((_share(text) if text.startswith("width") else parse(text), _listed(patterns)))
    if not found:
        raise RequestError("lighten: no rule; wanted such as 'separable' or ['pointwise-before', 'grouped:4']")
    return found


def _share(text: str) -> float:
    try:
        share = float(text.partition(":")[2])
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise RequestError(f"lighten: {text!r} is no form of the rule; wanted width:0.5, a share in (0, 1]")
    return share


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass
class _Job:
    """The copy that is worked on, and what was done to it."""

    model: nn.Module
    inputs: Inputs | None
    batches: Sequence[Inputs] | None
    fresh: bool
    origins: set[str]
    rows: list[Rewritten]
    steps: list[Step]
    left: dict[str, str]

    def rewrite(self, rule: Rule, choice: Choice) -> None:
        """Put what the rule makes in the place of each layer that is meant."""
        new = self._new(rule, choice)
        before = copied(self.model)
        put(self.model, new, fitted=not self.fresh)
        self.steps += [Rewriting(rule.text, tuple(new))] if new else []
        self.origins |= set(new)
        errors: Mapping[str, float | None] = dict.fromkeys(new)
        if new and (self.batches is not None or not (self.fresh or "norm" in rule.words)):
            errors = _errors(before, self.model, list(new), self.batches)
        self._note(before, rule.text, errors)

    def _new(self, rule: Rule, choice: Choice) -> dict[str, Rewrite]:
        graph = None if self.inputs is None else trace(self.model, self.inputs, watch=False)
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
                self.left[name] = f"{rule.text}: {rewrite}"
            else:
                new[name] = rewrite
        return new

    def narrow(self, share: float, choice: Choice) -> None:
        """Keep this share of the channels of every group."""
        assert self.inputs is not None
        before = self.model
        decided = plan(before, self.inputs, scope={"*": share}, only=choice.only, exclude=choice.exclude)
        self.model = apply(before, decided)
        self.steps.append(decided)
        changed = [name for name, layer in before.named_modules() if name and isinstance(layer, _ConvNd | nn.Linear)
                   and _params(layer) != _params(self.model.get_submodule(name))]
        self._note(before, f"width:{share:g}", dict.fromkeys(changed))

    def _note(self, before: nn.Module, rule: str, errors: Mapping[str, float | None]) -> None:
        """A row for each layer that changed."""
        costs = [] if self.inputs is None else [
            {module.name: module.macs for module in profile(model, self.inputs).modules}
            for model in (before, self.model)]
        for name, error in errors.items():
            old, new = before.get_submodule(name), self.model.get_submodule(name)
            macs = (costs[0].get(name, 0), costs[1].get(name, 0)) if costs else None
            self.rows.append(Rewritten(name, rule, told(old), told(new), (_params(old), _params(new)), macs, error))


def _errors(before: nn.Module, after: nn.Module, layers: Sequence[str],
            batches: Sequence[Inputs] | None) -> dict[str, float | None]:
    """How far each new layer's outputs are from the old one's; with data, after it was fitted to them."""
    if batches is not None:
        found = {name: left**0.5 for name, (_, left) in fit_to_outputs(before, after, layers, batches).items()}
    else:
        found = {name: on_noise(before.get_submodule(name), after.get_submodule(name)) for name in layers}
    return {name: None if isnan(error) else error for name, error in found.items()}


@torch.no_grad()
def on_noise(old: nn.Module, new: nn.Module) -> float:
    """Relative error of a new layer's outputs on white noise, in float64; not-a-number on the meta device."""
    like: Any = old
    if like.weight.is_meta:
        return float("nan")
    linear = isinstance(old, nn.Linear)
    shape = (64, like.in_features) if linear else (
        2, like.in_channels, *(max(8, 2 * d * k) for d, k in zip(like.dilation, like.kernel_size, strict=True)))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like.weight.device)
    wanted, found = copied(old).double()(noise), copied(new).double()(noise)
    return float(((wanted - found).square().mean() / wanted.var()).sqrt())
