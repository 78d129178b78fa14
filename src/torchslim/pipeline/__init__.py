"""The whole job in phases that survive interruption: train, sparsify, plan, cut, prove, fine-tune, measure, export."""
