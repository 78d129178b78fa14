"""Models or layers -> measured times, and a prediction of a network's time at other widths.

Open `timing.py` first for `measure`, `target.py` for budgets of time. A new runtime goes into `backends.py` (how models
run in it) and `layer_benchmark.py` (how layers are timed in it). From layers to a prediction: `workloads.py` ->
`layer_benchmark.py` -> `cache.py` -> `interpolation.py` -> `predictor.py`. `per_layer.py` times modules with hooks.
"""
