"""The first hour of a GPU: suites, kernels, decode steps and vision on a card, beside what was computed for it."""
