"""torchslim makes convolutional networks light, and proves it.

The public names; each is imported when first used, so that `import torchslim` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchslim._version import __version__ as __version__

if TYPE_CHECKING:
    from torchslim import blocks, errors, importance, integrations, rewriting, train, zoo
    from torchslim.compensation.compensate import compensate
    from torchslim.costs.profiler import Profile, profile
    from torchslim.coupling.coupling import groups
    from torchslim.deploy.exporting import export
    from torchslim.latency.timing import measure
    from torchslim.planning.dead.removal import remove_dead
    from torchslim.planning.iterative import schedule
    from torchslim.planning.presets import preset
    from torchslim.planning.pruning import plan, prune
    from torchslim.planning.sensitivity import Sensitivity, sensitivity
    from torchslim.proof.verification import verify
    from torchslim.rewriting import lighten
    from torchslim.rules import register_rule
    from torchslim.store.loading import load
    from torchslim.store.saving import save
    from torchslim.surgery.cutting import apply
    from torchslim.surgery.optimizers import carry_optimizer
    from torchslim.surgery.plans import Plan
    from torchslim.train.distillation import distill
    from torchslim.zoo.sources import create_model, list_models

_HOME = {
    "Plan": "surgery.plans",
    "Profile": "costs.profiler",
    "Sensitivity": "planning.sensitivity",
    "apply": "surgery.cutting",
    "carry_optimizer": "surgery.optimizers",
    "compensate": "compensation.compensate",
    "create_model": "zoo.sources",
    "distill": "train.distillation",
    "export": "deploy.exporting",
    "groups": "coupling.coupling",
    "lighten": "rewriting",
    "list_models": "zoo.sources",
    "load": "store.loading",
    "measure": "latency.timing",
    "plan": "planning.pruning",
    "preset": "planning.presets",
    "profile": "costs.profiler",
    "prune": "planning.pruning",
    "register_rule": "rules",
    "remove_dead": "planning.dead.removal",
    "save": "store.saving",
    "schedule": "planning.iterative",
    "sensitivity": "planning.sensitivity",
    "verify": "proof.verification",
}
_SUBPACKAGES = ("blocks", "errors", "importance", "integrations", "rewriting", "train", "zoo")

__all__ = [
    "Plan",
    "Profile",
    "Sensitivity",
    "apply",
    "blocks",
    "carry_optimizer",
    "compensate",
    "create_model",
    "distill",
    "errors",
    "export",
    "groups",
    "importance",
    "integrations",
    "lighten",
    "list_models",
    "load",
    "measure",
    "plan",
    "preset",
    "profile",
    "prune",
    "register_rule",
    "remove_dead",
    "rewriting",
    "save",
    "schedule",
    "sensitivity",
    "train",
    "verify",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"torchslim.{_HOME[name]}"), name)
    if name in _SUBPACKAGES:
        return import_module(f"torchslim.{name}")
    raise AttributeError(f"module 'torchslim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
