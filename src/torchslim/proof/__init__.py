"""Original + slim model + plan -> the largest relative difference, at every layer, in float64.

The cut network is compared with the original whose removed channels are silenced. Open `verification.py` first.
"""
