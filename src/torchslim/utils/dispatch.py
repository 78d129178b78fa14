"""The base of all modes that watch or change ATen operations as they run."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that torch does not guard against its compiler, which is not at work in it.

    The guard imports the compiler, which takes seconds, and costs time at every single operation.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
