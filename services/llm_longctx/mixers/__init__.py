"""Attention architectures that are trained as such: each family is a file of maths and the networks that use it."""
