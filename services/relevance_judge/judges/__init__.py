"""Judges, one file each, found by the package scan."""
