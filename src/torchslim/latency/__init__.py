"""Models or layers -> measured times, and a prediction of a network's time at other widths.

Open `timing.py` first for the clock, `target.py` for budgets of time; `backends.py` lists what networks run in.
"""
