"""Graph or coupling -> what a network costs (parameters, MACs, memory), uncut and as a function of what is kept.

Open `profiler.py` first for counting, `cost_models.py` for costs under a cut, `advice.py` for findings.
"""
