"""Experiments on edges between heads and MLPs."""
