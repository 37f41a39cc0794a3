"""Training for Fovea: recipes of its models, import of official checkpoints, calibration."""
