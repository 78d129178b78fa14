"""What was decided, as plain data: a rule and the layers in whose place it goes; and putting it there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from torchslim.errors import CheckpointError, PlanError, RequestError
from torchslim.rewriting.building import built
from torchslim.rewriting.replacements import Replacement, parse
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import Plan
from torchslim.utils.copying import copied
from torchslim.utils.layer_spec import spec_of
from torchslim.utils.text import first_line


@dataclass(frozen=True)
class RewriteStep:
    """One rule, and the layers in whose place it goes.

    Attributes:
        rule: as it was asked for ("grouped:4:shuffle").
        layers: their names.
    """

    rule: str
    layers: tuple[str, ...]

    def to_json(self) -> str:
        """As JSON text; `RewriteStep.from_json` gives an equal one back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RewriteStep:
        """What `to_json` wrote.

        Raises:
            CheckpointError: the text is something else.
        """
        try:
            raw = json.loads(text)
            layers = raw["layers"]
            if set(raw) != {"rule", "layers"} or not isinstance(layers, list):
                raise ValueError("rule and a list of layers wanted")
            return cls(parse(raw["rule"]).text, tuple(str(name) for name in layers))
        except (AttributeError, KeyError, TypeError, ValueError, RequestError) as error:
            raise CheckpointError(f"rewriting: not one of torchslim's ({first_line(error)}); give the text that "
                                  "RewriteStep.to_json wrote") from error


ArchitectureStep = RewriteStep | Plan
"""One of the steps that make a network light: layers rewritten, or channels cut."""


def apply_step(model: nn.Module, step: ArchitectureStep) -> nn.Module:
    """A copy of a model after a step. Layers that it puts in have fresh weights; the random state stays as it was.

    Raises:
        PlanError: the step was decided for another network.
    """
    if isinstance(step, Plan):
        return apply(model, step)
    copy, rule = copied(model), parse(step.rule)
    found: dict[str, Replacement] = {}
    for name in step.layers:
        try:
            spec = spec_of(copy.get_submodule(name))
        except AttributeError as error:
            raise PlanError(f"{name}: no such layer, wanted for {step.rule}; rewrite the network that this was decided "
                            "for") from error
        rewrite = "it is no plain layer of torch's" if spec is None else rule(spec)
        if isinstance(rewrite, str):
            raise PlanError(f"{name}: {step.rule} does not fit: {rewrite}; rewrite the network that this was decided "
                            "for")
        found[name] = rewrite
    with torch.random.fork_rng(devices=[]):
        exchange(copy, {layer: built(rewrite, layer, fitted=False)
                        for layer, rewrite in ((copy.get_submodule(name), rewrite) for name, rewrite in found.items())})
    return copy


def exchange(model: nn.Module, places: Mapping[nn.Module, nn.Module]) -> None:
    """Each module in the place of another, in the model itself, wherever that one was held."""
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child is not None and child in places:
                module._modules[key] = places[child]
