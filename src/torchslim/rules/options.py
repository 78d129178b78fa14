"""Options of a coupling: which channels may be cut, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CouplingOptions:
    """What may be cut, and how.

    Attributes:
        allow_approximate: also cut channels that an operation mixes by value.
        whole_groups: grouped convolutions lose whole groups; otherwise each group loses equally many channels.
        tied_constraints: indices of the `EqualCountConstraint`s whose rows are united, n-th channel with n-th channel.
        grouped_weights: weights of convolutions that are grouped in the original network. Slimmed to one channel a
            group, such a convolution looks depthwise; it is still treated as grouped.
        whole_heads, head_widths: numbers of the products of activations (see `LabelSpace`) whose heads go whole, or
            lose equally many widths each; for others their number decides.
    """

    allow_approximate: bool = False
    whole_groups: bool = False
    tied_constraints: frozenset[tuple[int, int]] = frozenset()
    grouped_weights: frozenset[str] = frozenset()
    whole_heads: frozenset[int] = frozenset()
    head_widths: frozenset[int] = frozenset()


DEFAULTS = CouplingOptions()
