"""Model + `Plan` -> slim model. Decides nothing.

Open `plans.py` first for the value that says what is kept, `cutting.py` for how it is applied; `width_attributes.py`
finds the attributes in which layers store their widths, `optimizers.py` cuts an optimizer's state.
"""
