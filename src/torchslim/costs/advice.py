"""Model -> findings about its costs, the worst first, each with a remedy."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from torchslim.costs.findings import (
    Finding,
    FindingCheck,
    Run,
    dead_parameters,
    elementwise,
    fragmented,
    grouped,
    unbalanced,
)
from torchslim.costs.layer_findings import (
    dilated_padding,
    heavy_ends,
    large_kernels,
    odd_widths,
    unfused_norms,
    useless_bias,
)
from torchslim.costs.profiler import profiled
from torchslim.errors import RequestError
from torchslim.tracing.trace import trace
from torchslim.utils.inputs import Inputs, unwrap

CHECKS: tuple[FindingCheck, ...] = (
    dead_parameters, unbalanced, grouped, fragmented, elementwise, useless_bias, unfused_norms, odd_widths,
    large_kernels, dilated_padding)

MIN_GAIN = 0.02
"""Findings of a smaller gain are left out, except the kinds in `_ALWAYS`: certain ones, and those only timing tells."""

_ALWAYS = frozenset({"dead parameters", "convolution bias before batch norm", "fragmentation (G3)",
                     '"same" padding that ignores dilation'})


def advise(model: nn.Module, inputs: Inputs, *, ms: Mapping[str, float] | None = None,
           name: str = "MODEL") -> tuple[Finding, ...]:
    """What makes a network more expensive than necessary, the worst first; empty if nothing was found.

    ShuffleNetV2's guidelines G1 to G4 (Ma et al. 2018), dead parameters, convolution biases before batch norm, batch
    norms that inference could fold, channel counts that are no multiple of 8, large kernels that factorise, a first
    layer or classifier that dominates, and padding that ignores dilation.

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with (see `torchslim.profile`).
        ms: measured milliseconds of each module without its submodules, for the evidence.
        name: the name of the model in the commands of remedies.

    Raises:
        TraceError: the model fails on these inputs.
        RequestError: it computes nothing on them.
    """
    model = unwrap(model)
    graph = trace(model, inputs, detect_width_reads=False)
    run = Run(graph, profiled(model, graph), name, ms or {})
    if not run.profile.memory_access or not all(value.numel for value in graph.inputs):
        raise RequestError("advise: the model computes nothing on these inputs; give inputs with elements in them")
    findings = [finding for check in CHECKS if (finding := check(run)) is not None] + heavy_ends(run)
    kept = [finding for finding in findings if finding.gain >= MIN_GAIN or finding.kind in _ALWAYS]
    return tuple(sorted(kept, key=lambda finding: -finding.gain))
