"""Forced and free decoding for experiments, shared prompt prefixes, and needle grids."""
