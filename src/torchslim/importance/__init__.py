"""Channel groups + evidence -> one score per channel, higher is more important.

A criterion is a small frozen value: BNScale (Liu et al. 2017), L1 and L2 (Li et al. 2017), FPGM (He et al. 2019), LAMP
(Lee et al. 2021), Activation (Hu et al. 2016), Taylor (Molchanov et al. 2019), Hessian (LeCun et al. 1989), OBS
(Hassibi and Stork 1993), Random, and Automatic, which takes the best of them for what is given. `plan(importance=...)`
takes a name, an instance, or a callable from a group to scores. Open `criterion.py` first: custom criteria are
subclasses of `Criterion`.
"""

from torchslim.importance.activations import Activation
from torchslim.importance.automatic import Automatic
from torchslim.importance.criterion import ByGroup, Criterion, Random
from torchslim.importance.evidence import Evidence
from torchslim.importance.loss_based import Hessian, Taylor
from torchslim.importance.obs.criterion import OBS
from torchslim.importance.registry import CRITERIA, Importance, criterion
from torchslim.importance.scoring import score
from torchslim.importance.types import Scores
from torchslim.importance.weights import FPGM, L1, L2, LAMP, BNScale

__all__ = [
    "CRITERIA",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "OBS",
    "Activation",
    "Automatic",
    "BNScale",
    "ByGroup",
    "Criterion",
    "Evidence",
    "Hessian",
    "Importance",
    "Random",
    "Scores",
    "Taylor",
    "criterion",
    "score",
]
