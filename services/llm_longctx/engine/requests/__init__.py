"""Requests to the engine: prompt and options in, tokens out through hooks. Knows nothing about text or models."""
