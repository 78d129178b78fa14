"""Models or layers -> measured times, and predicted times of a network at other widths.

Open `timing.py` first for `measure`, `target.py` for latency budgets. A new runtime goes into `backends.py` (running
models) and `layer_benchmark.py` (timing layers). From layers to a prediction: `workloads.py` ->
`layer_benchmark.py` -> `cache.py` -> `interpolation.py` -> `predictor.py`. `per_layer.py` times modules with hooks.
"""
