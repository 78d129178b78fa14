"""A run of a network beside the graph of an earlier run: each operation with what was recorded of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchslim.errors import ProofError
from torchslim.tracing.arguments import operation_name
from torchslim.tracing.graph import Graph, Op
from torchslim.utils.dispatch import DispatchMode

INCIDENTAL = frozenset({"aten.detach", "aten.alias"})
"""Views that torch makes internally, depending on the active modes."""


class FollowedRun(DispatchMode):
    """Runs a network and gives each operation to `run_operation`, with its record.

    Attributes:
        ops: the operations of the graph, without incidental ones.
        last: index of the last operation that is followed; the rest (such as a detector's choice of boxes) may depend
            on values.
    """

    def __init__(self, graph: Graph, last: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # What has no overload torch never dispatches.
        self.ops = [op for op in graph.ops if op.overload is not None and op.name not in INCIDENTAL]
        self.last = len(graph.ops) if last is None else last
        self.count = 0

    def run_operation(self, op: Op, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation; `op` is what the graph says of it."""
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation_name(func) in INCIDENTAL:
            return func(*args, **kwargs)
        op = self.ops[self.count] if self.count < len(self.ops) else None
        if op is None or op.index > self.last:
            return func(*args, **kwargs)
        if op.name != operation_name(func):
            result = func(*args, **kwargs)
            if _gives_tensors(result):
                raise ProofError(f"the original ran {operation_name(func)} where it ran {op.name} just before; "
                                 "a network whose operations change from run to run can't be compared")
            return result
        self.count += 1
        return self.run_operation(op, func, args, kwargs)


def _gives_tensors(result: Any) -> bool:
    parts = result if isinstance(result, list | tuple) else [result]
    return any(isinstance(part, Tensor) for part in parts)
