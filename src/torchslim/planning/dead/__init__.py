"""Model + inputs -> the model without the channels that contribute nothing, and the plan of it.

Open `removal.py` first. `constants.py` follows which channels hold one value whatever the inputs are, `liveness.py`
which channels the outputs depend on, `folding.py` moves constants into biases, `finding.py` is what `advise` says.
"""
