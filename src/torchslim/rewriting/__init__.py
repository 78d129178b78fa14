"""Rewrite a network's heavy layers into light ones: model + rules -> a lighter copy.

    spec.py       what a convolution is, as a value
    fits.py       the light weights that come closest to the heavy ones
    rules.py      what may stand in a layer's place
    building.py   the layers in its place
    steps.py      what was decided, as plain data, and putting it there
    choosing.py   which layers are rewritten
    sound.py      with which of them the network no longer runs
    solving.py    weights by least squares
    norms.py      batch norms behind them
    recovery.py   fit them to the old layers' outputs
    batches.py    the data to fit to, and what is kept back to measure on
    asking.py     what was asked for, checked
    report.py     what was done
    rewrite.py    the whole way
"""

from torchslim.rewriting.report import Lightened, Rewritten
from torchslim.rewriting.rewrite import lighten, lightened
from torchslim.rewriting.steps import Rewriting, Step, redone

__all__ = ["Lightened", "Rewriting", "Rewritten", "Step", "lighten", "lightened", "redone"]
