"""Slim models as files: one safetensors file with weights, steps and source; no pickle.

Model -> file in `saving.py`, file or name -> model in `loading.py`; what a file says of itself in `header.py`.
"""
