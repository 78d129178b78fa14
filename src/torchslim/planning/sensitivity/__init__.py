"""How much each channel group by itself can do without: measured group by group, drawn, and turned into shares."""

from torchslim.planning.sensitivity.result import GroupSensitivity, Sensitivity
from torchslim.planning.sensitivity.scan import Measured, sensitivity

__all__ = ["GroupSensitivity", "Measured", "Sensitivity", "sensitivity"]
