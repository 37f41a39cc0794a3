"""What kernels for GPUs share: how they are launched, the cards that they are built for, and parts of their code.

Knows nothing about what an operation computes.
"""
