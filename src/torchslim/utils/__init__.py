"""Helpers that know nothing of pruning: inputs, modules by name, copies, whole-file writes, formatting, seeds.

Each file stands by itself and imports only `errors` and other files of this folder.
"""
