"""Experiments of the service interpretability on models with a memory."""
