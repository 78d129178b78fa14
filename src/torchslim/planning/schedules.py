"""How fast a network is cut where it is cut step by step: the share that is kept after each step. No torch here."""

from __future__ import annotations

from collections.abc import Callable

from torchslim.errors import RequestError

CURVES: dict[str, Callable[[float, float], float]] = {
    "cubic": lambda done, final: final + (1 - final) * (1 - done)**3,
    "linear": lambda done, final: 1 - (1 - final) * done,
    "geometric": lambda done, final: final**done,
}


def shares(steps: int, final: float, curve: str = "cubic") -> list[float]:
    """The share kept after each of several steps; the last is `final`.

    Args:
        steps: how many there are.
        final: the share that is kept in the end, above 0 and at most 1.
        curve: "cubic" takes much at first, while there is much to spare, and ever less (Zhu & Gupta 2017, equation 1),
            "linear" the same of the original each time, "geometric" the same of what is left.

    Raises:
        RequestError: no steps, a share that is none, or an unknown curve.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise RequestError(f"steps: got {steps!r}, wanted an int of at least 1; try 5")
    if isinstance(final, bool | str) or not 0 < final <= 1:
        raise RequestError(f"final: got {final!r}, wanted the share kept in the end, above 0 and at most 1; try 0.5")
    if curve not in CURVES:
        raise RequestError(f"curve: got {curve!r}, wanted one of {', '.join(CURVES)}")
    return [CURVES[curve](step / steps, float(final)) for step in range(1, steps)] + [float(final)]
