"""Routing attention and the Routing Transformer."""
