"""Attention of the engine: methods made ready for a model, and the reading of chunks and steps under them."""
