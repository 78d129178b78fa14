"""torchslim makes convolutional networks light, and proves it.

The public names; each is imported when first used, so that `import torchslim` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchslim import blocks, errors, importance, rewriting, train, zoo
    from torchslim.compensation import compensate
    from torchslim.coupling import groups
    from torchslim.exporting import export
    from torchslim.latency import measure
    from torchslim.optimizers import carry_optimizer
    from torchslim.plans import Plan
    from torchslim.presets import preset
    from torchslim.profiler import Profile, profile
    from torchslim.proof import verify
    from torchslim.pruning import plan, prune
    from torchslim.rewriting import lighten
    from torchslim.rules import register_rule
    from torchslim.sensing import Sensitivity, sensitivity
    from torchslim.sources import create_model, list_models
    from torchslim.stepping import schedule
    from torchslim.store import load, save
    from torchslim.surgery import apply

__version__ = "0.1.0"

_HOME = {
    "Plan": "plans",
    "Profile": "profiler",
    "Sensitivity": "sensing",
    "apply": "surgery",
    "carry_optimizer": "optimizers",
    "compensate": "compensation",
    "create_model": "sources",
    "export": "exporting",
    "groups": "coupling",
    "lighten": "rewriting",
    "list_models": "sources",
    "load": "store",
    "measure": "latency",
    "plan": "pruning",
    "preset": "presets",
    "profile": "profiler",
    "prune": "pruning",
    "register_rule": "rules",
    "save": "store",
    "schedule": "stepping",
    "sensitivity": "sensing",
    "verify": "proof",
}
_SUBPACKAGES = ("blocks", "errors", "importance", "rewriting", "train", "zoo")

__all__ = [
    "Plan",
    "Profile",
    "Sensitivity",
    "apply",
    "blocks",
    "carry_optimizer",
    "compensate",
    "create_model",
    "errors",
    "export",
    "groups",
    "importance",
    "lighten",
    "list_models",
    "load",
    "measure",
    "plan",
    "preset",
    "profile",
    "prune",
    "register_rule",
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
