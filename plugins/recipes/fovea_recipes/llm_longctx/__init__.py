"""Training recipes of the small models of trained attention: data, loss, metrics."""
