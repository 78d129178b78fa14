"""One cut of one small network, held to everything that a cut must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import Untouched, check_training, copied, count, oracle_error, random_statistics
from torchslim.surgery.cutting import tensors_of
from torchslim.surgery.plans import Plan

EXACT = 1e-10
OWN_LAYERS = frozenset({"in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels",
                        "num_groups", "num_parameters", "normalized_shape", "embedding_dim", "input_size",
                        "hidden_size", "proj_size"})


class Cut:
    """`model`, cut as asked, and checked.

    Attributes:
        model, plan, slim: the three of them.
        attribute_updates: "module.attribute" -> (old, new); what torch's own layers remember of their widths aside.
    """

    def __init__(self, model: nn.Module, *inputs: Tensor, oracle: bool = True, training: bool = True,
                 **request: Any) -> None:
        self.model, self.inputs = random_statistics(model).eval(), inputs
        before = Untouched(self.model)
        self.plan: Plan = ts.plan(self.model, inputs, strict=False, **(request or {"macs": 0.5}))
        self.slim = ts.apply(self.model, self.plan)
        before.check()
        self.check(oracle, training)
        self.attribute_updates = {f"{update.module}.{update.attribute}".strip("."): (update.old, update.new)
                                  for update in self.plan.attribute_updates
                      if update.attribute not in OWN_LAYERS}

    def check(self, oracle: bool, training: bool) -> None:
        assert ts.verify(self.model, self.slim, self.plan, self.inputs) < EXACT
        if oracle:
            assert oracle_error(self.model, self.slim, self.plan, *self.inputs) < EXACT
        assert self.plan.predicted["params"] == count(self.slim)
        assert ts.Plan.from_json(self.plan.to_json()) == self.plan
        assert list(self.slim.state_dict()) == list(self.model.state_dict())
        if training:
            assert check_training(self.slim, *self.inputs) == check_training(self.model, *self.inputs)

    def before(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, buffer or attribute in the original."""
        return tuple(tensors_of(self.model)[name].shape)

    def after(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, buffer or attribute in the slim network."""
        return tuple(tensors_of(self.slim)[name].shape)

    def kept(self, name: str, dim: int = 0) -> tuple[int, ...]:
        """What is kept along a dimension; fails where nothing was cut."""
        return self.plan.kept[name][dim]

    def size(self, name: str, dim: int = 0) -> int:
        """How wide a dimension became; fails where nothing was cut, or where the slim tensor has another size."""
        found = self.after(name)[dim]
        if name not in self.plan.grouped:
            assert found == len(self.kept(name, dim))
        assert found < self.before(name)[dim]
        return found

    def uncut(self, *names: str) -> bool:
        """Whether all these tensors are as they were."""
        return all(name not in self.plan.kept and self.before(name) == self.after(name) for name in names)

    def reasons(self, name: str) -> set[str]:
        """Why channels of the group that goes by this name stay."""
        return {entry.reason for entry in self.plan.left_alone if entry.name == name}

    def loads_back(self, folder: Path) -> None:
        """The slim network as a file, and back."""
        path = ts.save(self.slim, folder / "slim.safetensors", self.plan)
        loaded = ts.load(path, model=self.model)
        assert list(loaded.state_dict()) == list(self.slim.state_dict())
        for a, b in zip(loaded.state_dict().values(), self.slim.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        with torch.no_grad():
            assert torch.equal(loaded(*self.inputs), copied(self.slim)(*self.inputs))


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)
