"""Measures of systems and of answers, from labels alone."""
