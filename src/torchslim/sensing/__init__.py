"""How much each channel group by itself can do without: measured group by group, drawn, and turned into shares."""

from torchslim.sensing.found import GroupSensitivity, Sensitivity
from torchslim.sensing.scan import Measured, sensitivity

__all__ = ["GroupSensitivity", "Measured", "Sensitivity", "sensitivity"]
