"""Attributes of torch's own layers that a cut makes outdated: `out_channels`, `num_groups`, `num_heads`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from torchslim.costs.cost_models import Shares
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.labeled_graph import GROUP_NORM
from torchslim.planning.width_repair import Sizes
from torchslim.rules import multiplies_activations
from torchslim.surgery.cutting import resized
from torchslim.surgery.plans import AttributeUpdate
from torchslim.surgery.width_attributes import outdated_attributes
from torchslim.tracing.width_reads import has_parametrizations
from torchslim.utils.modules import tensors_of


def layer_attribute_updates(model: nn.Module, coupling: Coupling, shares: Shares, sizes: Sizes,
                            grouped: Mapping[str, tuple[int, int]]) -> list[AttributeUpdate]:
    """What torch's own layers remember that the cut makes outdated; what contradicts its tensors now is left alone."""
    return [*_updates_by_shape(model, sizes, grouped), *_updates_of_group_norms(model, coupling, shares),
            *_updates_of_heads(model, coupling, shares)]


def _updates_of_heads(model: nn.Module, coupling: Coupling, shares: Shares) -> list[AttributeUpdate]:
    """The heads that are left of torch's attention: no shape shows them."""
    updates = {}
    for labeled in coupling.labeled_graphs:
        for op in labeled.graph.ops:
            module = model.get_submodule(op.module) if multiplies_activations(op) else None
            if isinstance(module, nn.MultiheadAttention):
                before, after = op.output.shape[0], labeled.shape(op.output, shares)[0]
                if after != before:
                    old = module.num_heads
                    updates[op.module] = AttributeUpdate(op.module, "num_heads", old, old * after // before)
    return list(updates.values())


def _updates_of_group_norms(model: nn.Module, coupling: Coupling, shares: Shares) -> list[AttributeUpdate]:
    """The groups that are left of group norms, and the channels of those without weights: no shape shows them."""
    updates = {}
    for labeled in coupling.labeled_graphs:
        for op in labeled.graph.ops:
            module = model.get_submodule(op.module) if op.name == GROUP_NORM else None
            if isinstance(module, nn.GroupNorm) and module.num_groups == op.args[6]:
                new = {"num_groups": labeled.norm_groups(op, shares)}
                if module.weight is None:
                    new["num_channels"] = labeled.shape(op.args[0], shares)[1]
                for attribute, value in new.items():
                    old = getattr(module, attribute)
                    if value != old:
                        updates[op.module, attribute] = AttributeUpdate(op.module, attribute, old, value)
    return list(updates.values())


def _updates_by_shape(model: nn.Module, sizes: Sizes,
                      grouped: Mapping[str, tuple[int, int]]) -> list[AttributeUpdate]:
    """What the shapes of the tensors tell, and the groups that are left of convolutions."""
    state = tensors_of(model)
    shapes = {id(state[name]): [dims.get(dim, size) for dim, size in enumerate(state[name].shape)]
              for name, dims in sizes.items()}
    groups = {name: after for name, (_, after) in grouped.items()}
    if not has_parametrizations(model.modules()):
        return outdated_attributes(model, lambda tensor: shapes.get(id(tensor)) or tensor.shape, groups)
    always = {(update.module, update.attribute) for update in outdated_attributes(model)}
    with resized(model, sizes, ()):  # a computed weight has its shape from those that it is computed of
        return [update for update in outdated_attributes(model, groups=groups)
                if (update.module, update.attribute) not in always]
