"""Experiments, one per file; each is found by the package scan and served as a model of the task `probe`."""
