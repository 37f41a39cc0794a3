"""Titans: fast weights, the neural memory, its layers, networks, and states as bytes."""
