"""Training: labelled data, a loop that survives interruption, sparsity before the cut."""

from torchslim.train.data import load_data
from torchslim.train.dataset import Data, labelled
from torchslim.train.fitting import History, Progress, fit
from torchslim.train.scoring import evaluate
from torchslim.train.sparsity import Slimming

__all__ = ["Data", "History", "Progress", "Slimming", "evaluate", "fit", "labelled", "load_data"]
