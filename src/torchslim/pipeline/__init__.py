"""Resumable pruning pipeline in phases: train, sparsify, plan, cut, verify, fine-tune, measure, export."""
