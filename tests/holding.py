"""What a real run holds in memory: the oracle for predicted peaks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Holding(TorchDispatchMode):
    """Which storages each operation of a real run reads and makes, by address; all of them kept alive."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.kept: list[Any] = [inputs]
        self.weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.steps: list[dict[int, int]] = []
        self.first = self._storages([inputs])

    def _storages(self, tree: Any) -> dict[int, int]:
        found = [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, Tensor)]
        return {s.data_ptr(): s.nbytes() for s in found if s.nbytes() and s.data_ptr() not in self.weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.kept.append((args, result))
        self.steps.append(self._storages((args, kwargs, result)))
        return result

    def peak(self) -> int:
        """The most bytes of storages between their first and their last step."""
        self.steps[-1] |= self._storages([self.kept[-1][1]])
        spans: dict[int, list[int]] = {key: [0, 0] for key in self.first}
        sizes = dict(self.first)
        for place, step in enumerate(self.steps):
            sizes |= step
            for key in step:
                spans.setdefault(key, [place, place])[1] = place
        return max(sum(sizes[key] for key, (start, end) in spans.items() if start <= place <= end)
                   for place in range(len(self.steps)))
