"""`Graph` -> groups of channels that must be kept or removed together, and which rows must lose equally many.

The rows in `rules` propagate channel labels through the graph. Open `coupling.py` first; `groups.py` has the values
that users see.
"""
