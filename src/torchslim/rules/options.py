"""What a coupling may count on: which channels may be cut, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """What may be cut, and how.

    Attributes:
        allow_approximate: channels, too, that an operation mixes by value.
        whole_groups: grouped convolutions lose whole groups; otherwise equally many channels of each.
        ties: places of rows (see `Rows`) whose n-th channels are made one.
        known_grouped: weights of convolutions that are grouped in the original network: slimmed to one channel a group,
            such a convolution looks depthwise and is not.
    """

    allow_approximate: bool = False
    whole_groups: bool = False
    ties: frozenset[int] = frozenset()
    known_grouped: frozenset[str] = frozenset()


PLAIN = Terms()
