"""What `advise` says of channels that contribute nothing."""

from __future__ import annotations

from torch import nn

from torchslim.costs.findings import Finding
from torchslim.errors import ProofError, TraceError, UnsupportedModel
from torchslim.planning.dead.removal import plan_removal
from torchslim.utils.formatting import percent, pluralize
from torchslim.utils.inputs import Inputs


def dead_channels(model: nn.Module, inputs: Inputs, name: str) -> Finding | None:
    """The channels that `remove_dead` takes out, with what this saves, counted exactly.

    Args:
        model: the network, with the weights that it is used with.
        inputs: what it is called with.
        name: of the model in the command of the remedy.

    Returns:
        None where there are no such channels, or where the network is none of those that can be cut.
    """
    try:
        removal = plan_removal(model, inputs)
    except (TraceError, UnsupportedModel, ProofError):
        return None
    if not removal.removed:
        return None
    shares = {resource: saved / max(removal.before[resource], 1) for resource, saved in removal.saved.items()}
    counts = " and ".join(f"{removal.saved[resource]:,} {unit} ({percent(shares[resource])})"
                          for resource, unit in (("macs", "MACs"), ("params", "parameters")))
    channels = pluralize(sum(removal.removed.values()), "channel")
    layers = sorted(removal.removed, key=lambda layer: -removal.removed[layer])
    gain, of = (shares["macs"], "MACs") if removal.saved["macs"] else (shares["params"], "parameters")
    return Finding(
        "dead channels", gain, of,
        f"{channels} of {pluralize(len(layers), 'layer')} contribute nothing with these weights: without them {counts} "
        "fewer, and the same outputs", tuple(layers),
        f"unless training is to wake them, take them out: `torchslim prune {name} --dead --out slim.safetensors`")
