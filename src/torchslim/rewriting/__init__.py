"""Model + rules -> a copy whose heavy layers are rewritten into light ones (`lighten`).

Open `lighten.py` first for the whole way; `replacements.py` has one row a rule, `decomposition.py` the light weights
that come closest to the heavy ones, `output_fitting.py` their fit to the old layers' outputs on data.
"""

from torchslim.rewriting.lighten import lighten, lightened
from torchslim.rewriting.report import Lightened, Rewritten
from torchslim.rewriting.steps import Rewriting, Step, redone

__all__ = ["Lightened", "Rewriting", "Rewritten", "Step", "lighten", "lightened", "redone"]
