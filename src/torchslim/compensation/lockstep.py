"""Calls side by side, so that all of them stand before the same layer at once.

What a layer reads from many batches decides what it becomes, and what comes after reads what that gives. A network that
runs once for each layer on each batch takes as many runs as it has layers; runs that wait for each other take one. Each
has a thread of its own, and one thread works at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

Arrive = Callable[[str, Any], None]
"""What a run calls at each place: its name, and what the run brings there."""
_END = ""


class OutOfStep(Exception):
    """Runs that do not come to the same places in the same order."""


def lockstep(runs: Sequence[Callable[[Arrive], Any]], meet: Callable[[str, list[Any]], None]) -> None:
    """Make all calls; wherever all of them have arrived, `meet` is called with the place and what each brings.

    Args:
        runs: each is called with the function to call at each place, without gradients.
        meet: called with the name of the place and what the runs bring, in their order; then the runs go on.

    Raises:
        OutOfStep: one run comes to another place than the others, or ends before them.
        Exception: whatever a run or `meet` raises.
    """
    brought: list[tuple[str, Any]] = [(_END, None)] * len(runs)
    turn, failures = threading.Lock(), []

    def together() -> None:
        names = {place for place, _ in brought}
        if len(names) > 1:
            raise OutOfStep(f"runs came to {' and '.join(repr(name) for name in sorted(names))} at once")
        if names != {_END}:
            with torch.no_grad():
                meet(names.pop(), [what for _, what in brought])

    barrier = threading.Barrier(len(runs), action=together)

    def arrive(own: int, place: str, what: Any) -> None:
        brought[own] = (place, what)
        turn.release()
        try:
            barrier.wait()
        finally:
            turn.acquire()

    def work(own: int, run: Callable[[Arrive], Any]) -> None:
        with turn:
            try:
                with torch.no_grad():
                    run(lambda place, what: arrive(own, place, what))
                    arrive(own, _END, None)
            except threading.BrokenBarrierError:
                pass  # another one failed
            except BaseException as error:  # raised again below
                failures.append(error)
                barrier.abort()

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(runs)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        barrier.abort()
    if failures:
        raise failures[0]
