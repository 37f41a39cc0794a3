"""Experiments of this plug-in, which the service finds by scanning."""
