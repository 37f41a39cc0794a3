"""Attention patterns: captured rows, head scores, the retrieval score."""
