"""Eviction by scores: who competes, what scores rest on, what a cut leaves, its oracle, and the method class."""
