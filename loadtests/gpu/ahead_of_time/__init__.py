"""Compilation of the Triton kernels without a card, for every card that they are meant for, against budgets.

`python -m loadtests.gpu.ahead_of_time` compiles and compares with `results.json`. Knows the kernels'
variants; knows nothing about engines.
"""
