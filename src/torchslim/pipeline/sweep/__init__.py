"""Many slim networks of one model, and the best of them: the metric against a cost, searched by Optuna.

In go `SweepSettings`; out comes a folder with all trials, their Pareto front and its networks. Open `runner.py` first.
"""
