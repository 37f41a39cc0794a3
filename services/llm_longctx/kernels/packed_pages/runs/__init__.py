"""Runs of packed entries, which may begin in the middle of a page, as the kernels of a GPU read them."""
