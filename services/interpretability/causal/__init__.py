"""Causal measurements: patching, ablation, attribution, pruning, simplified attention, and circuit tasks."""
