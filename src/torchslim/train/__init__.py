"""Training: data and tasks, a resumable loop in one or several processes, sparsity, gradual pruning, distillation."""

from torchslim.train.dataset import labelled
from torchslim.train.datasets.registry import load_data
from torchslim.train.evaluation import evaluate, metrics
from torchslim.train.gradual import GradualResult, fit_gradually
from torchslim.train.group_lasso import GroupLasso
from torchslim.train.loop import fit
from torchslim.train.progress import History, Progress
from torchslim.train.sharded import Sharded
from torchslim.train.sparsity import Slimming
from torchslim.utils.data import Data

__all__ = ["Data", "GradualResult", "GroupLasso", "History", "Progress", "Sharded", "Slimming", "evaluate", "fit",
           "fit_gradually", "labelled", "load_data", "metrics"]
