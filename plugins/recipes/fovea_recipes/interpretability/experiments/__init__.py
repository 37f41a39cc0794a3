"""Experiments that train models."""
