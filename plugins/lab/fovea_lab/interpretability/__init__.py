"""Experiments of the lab."""
