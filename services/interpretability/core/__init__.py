"""Core of the service: the Experiment contract, its Report, cell cache, result store and studied models."""
