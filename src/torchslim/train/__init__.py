"""Training: labelled data, a loop that survives interruption, sparsity before the cut, cuts while it goes on."""

from torchslim.train.data import load_data
from torchslim.train.dataset import Data, labelled
from torchslim.train.fitting import History, Progress, fit
from torchslim.train.gradual import Gradual, fit_gradually
from torchslim.train.scoring import evaluate
from torchslim.train.sparsity import Slimming

__all__ = ["Data", "Gradual", "History", "Progress", "Slimming", "evaluate", "fit", "fit_gradually", "labelled",
           "load_data"]
