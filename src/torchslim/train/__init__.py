"""Training: labelled data, a resumable loop, sparsity training, gradual pruning."""

from torchslim.train.data import load_data
from torchslim.train.dataset import labelled
from torchslim.train.evaluation import evaluate
from torchslim.train.gradual import GradualResult, fit_gradually
from torchslim.train.loop import History, Progress, fit
from torchslim.train.sparsity import Slimming
from torchslim.utils.data import Data

__all__ = ["Data", "GradualResult", "History", "Progress", "Slimming", "evaluate", "fit", "fit_gradually", "labelled",
           "load_data"]
