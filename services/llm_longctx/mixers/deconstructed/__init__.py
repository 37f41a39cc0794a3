"""Deconstructed attention: seven mixers and their language models."""
