"""Model + rules -> a copy whose heavy layers are replaced by light ones (`lighten`), and what was decided.

Open `lighten.py` first for the whole way. `replacements.py` has one row a rule, `decomposition.py` the light weights
that come closest to the heavy ones, `output_fitting.py` their fit to the old layers' outputs on data.
"""

from torchslim.rewriting.lighten import lighten, lighten_with_report
from torchslim.rewriting.report import LightenResult, RewrittenLayer
from torchslim.rewriting.steps import ArchitectureStep, RewriteStep, apply_step

__all__ = ["ArchitectureStep", "LightenResult", "RewriteStep", "RewrittenLayer", "apply_step", "lighten",
           "lighten_with_report"]
