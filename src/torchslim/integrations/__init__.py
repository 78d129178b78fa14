"""Other people's trainers: networks cut here, trained, validated and exported there.

One file a library, named after it, imported when it is first used and installed: `ultralytics.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchslim.integrations import ultralytics

__all__ = ["ultralytics"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"torchslim.integrations.{name}")
    raise AttributeError(f"module 'torchslim.integrations' has no attribute {name!r}")
