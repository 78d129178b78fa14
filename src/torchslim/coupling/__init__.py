"""`Graph` -> channel groups that live or die together, and which rows must lose equally many channels.

Labels of channels move along the tape by the rows in `rules`. Open `coupling.py` first; `groups.py` has the values
that users see.
"""
