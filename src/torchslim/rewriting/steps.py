"""What `lighten` decided, as plain data: a rule and the layers that it replaces; and building the network from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchslim.errors import CheckpointError, PlanError, RequestError
from torchslim.rewriting.building import build_replacement
from torchslim.rewriting.replacements import Replacement, parse_rule
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import Plan
from torchslim.utils.copying import copy_model
from torchslim.utils.json_values import parse_json, read_values
from torchslim.utils.layer_spec import spec_of

_REMEDY = "give the text that RewriteStep.to_json wrote"


@dataclass(frozen=True)
class RewriteStep:
    """One rule, and the layers that it replaces.

    Attributes:
        rule: as it was requested ("grouped:4:shuffle").
        layers: their names.
    """

    rule: str
    layers: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"rule": self.rule, "layers": list(self.layers)}

    def to_json(self) -> str:
        """As JSON text; `RewriteStep.from_json` gives an equal one back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Any, where: str = "rewriting") -> RewriteStep:
        """The step that `to_dict` wrote; `where` is what messages call it.

        Raises:
            CheckpointError: the values are something else, or name a rule that there is not.
        """
        step = read_values(cls, values, where, _REMEDY)
        try:
            return cls(parse_rule(step.rule).text, step.layers)
        except RequestError as error:
            raise CheckpointError(f"{where}.rule: {error}; {_REMEDY}") from error

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "rewriting") -> RewriteStep:
        """The step that `to_json` wrote; see `from_dict`."""
        return cls.from_dict(parse_json(text, where, _REMEDY), where)


ArchitectureStep = RewriteStep | Plan
"""A step that changes a network's architecture: layers replaced, or channels cut."""


def apply_step(model: nn.Module, step: ArchitectureStep) -> nn.Module:
    """A copy of a model after a step. New layers have fresh weights; the random state stays as it was.

    Raises:
        PlanError: the step was decided for another network.
    """
    if isinstance(step, Plan):
        return apply(model, step)
    copy = copy_model(model)
    with torch.random.fork_rng(devices=[]):
        exchange(copy, {copy.get_submodule(name): build_replacement(replacement, copy.get_submodule(name), fresh=True)
                        for name, replacement in _replacements(copy, step).items()})
    return copy


def _replacements(model: nn.Module, step: RewriteStep) -> dict[str, Replacement]:
    """The replacement of each of a step's layers."""
    rule, replacements = parse_rule(step.rule), dict[str, Replacement]()
    for name in step.layers:
        try:
            spec = spec_of(model.get_submodule(name))
        except AttributeError as error:
            raise PlanError(f"{name}: no such layer, wanted for {step.rule}; rewrite the network that this was decided "
                            "for") from error
        replacement = "it is no plain layer of torch's" if spec is None else rule.replacement(spec)
        if isinstance(replacement, str):
            raise PlanError(f"{name}: {step.rule} does not fit: {replacement}; rewrite the network that this was "
                            "decided for")
        replacements[name] = replacement
    return replacements


def exchange(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules in a model, in place, wherever they are held."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in replacements:
                module._modules[name] = replacements[child]
