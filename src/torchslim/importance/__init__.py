"""How much each channel matters: criteria, each a small frozen value, and what scores channels by them.

    BNScale      "bn_scale"     scales of batch norms            Liu et al. 2017
    L1, L2       "l1", "l2"     sizes of weights                 Li et al. 2017
    FPGM         "fpgm"         distances between filters        He et al. 2019
    LAMP         "lamp"         squares beside larger ones       Lee et al. 2021
    Activation   "activation"   how active channels are          Hu et al. 2016              data
    Taylor       "taylor"       first-order change of a loss     Molchanov et al. 2019       labelled data
    Hessian      "hessian"      second-order change of a loss    LeCun et al. 1989           labelled data
    OBS          "obs"           what a best refit leaves     Hassibi and Stork 1993      data
    Random       "random"       nothing

`plan(model, inputs, importance=...)` takes a name, a name with options ("l2:max", "l1:filters:none"), an instance
(`L2(normalize="max")`), or any callable from a group to one score a channel. A criterion of your own is a subclass of
`Criterion`.
"""

from torchslim.importance.activations import Activation
from torchslim.importance.evidence import Evidence
from torchslim.importance.losses import Hessian, Taylor
from torchslim.importance.names import CRITERIA, Importance, criterion
from torchslim.importance.protocol import ByGroup, Criterion, Random, Scores
from torchslim.importance.scoring import score
from torchslim.importance.surgeon import OBS
from torchslim.importance.weights import FPGM, L1, L2, LAMP, BNScale

__all__ = [
    "CRITERIA",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "OBS",
    "Activation",
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
