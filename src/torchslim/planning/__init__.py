"""Model + inputs + budgets -> `Plan`: which channels stay. Touches nothing.

Open `pruning.py` first: `plan` reads from top to bottom. Candidates are ranked (`candidates.py`), selected under the
budgets (`selection.py`) and tried at their slim widths (`channel_matching.py`).
"""
