"""Metrics: agreement, trust, order, uncertainty, bias, ensembles, calibration and baselines."""
