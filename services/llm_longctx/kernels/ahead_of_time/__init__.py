"""Compilation of the Triton kernels without a card, for every card that they are meant for, against budgets.

`python -m services.llm_longctx.kernels.ahead_of_time` compiles and compares with `results.json`. Knows the kernels'
variants; knows nothing about engines.
"""
