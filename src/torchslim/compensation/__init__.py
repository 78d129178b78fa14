"""Original + slim model + plan + unlabelled data -> the slim model refitted to the original's outputs.

Open `compensate.py` first; the least-squares problems are built from the moments in `moments.py`, and
`recalibration.py` resets the statistics of batch norms.
"""
