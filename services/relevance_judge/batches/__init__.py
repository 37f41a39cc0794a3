"""Batches of labels: which pairs, the runner, the label log, the store."""
