"""Metrics: agreement, rankings, uncertainty, bias, ensembles, calibration, baselines and the leaderboard."""
