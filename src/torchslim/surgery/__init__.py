"""Model + `Plan` -> slim model. Decides nothing.

Open `plans.py` first for the value that says what stays, `cutting.py` for how it is applied; `width_attributes.py`
updates what layers remember of their widths, `optimizers.py` cuts an optimizer's state.
"""
