"""The first hour of a GPU: suites, kernels, decode steps and vision on a card, against what was computed for it."""
