"""Attention architectures that are trained as such: one folder per family, with its maths, networks and sessions."""
