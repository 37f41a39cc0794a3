"""Experiments that train or prune models, or choose what to train them on."""
